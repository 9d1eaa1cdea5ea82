/* The instructions of deaths.S that kill. */
#pragma once
#include <stdint.h>

enum { DOUBLE_FAULT = 8 };

void call_null(void);
void overflow_stack(void);
void load_cr3(uint64_t table);
void jump_nowhere(void);
void divide_by_zero(void);
void write_unmapped(void);
void faulting_handler(void);
void looping_handler(void);
void write_on_small_stack(void);
void call_data(const void *data);
void load_bad_segment(void);
void undefined(void);
void read_reserved(void);
void dead_loop(void);
void report_panic(void);
void await_interrupt(void);
void halt_for_ever(void);

/* A page, and a stack in the page above it. */
extern char small_stack[];
