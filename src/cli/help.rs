//! `ringfence help`: commands, and the topics that are no command's.

use std::io::{self, IsTerminal, Write};

use clap::CommandFactory;
use clap::builder::StyledStr;

use super::args::Cli;
use crate::audit;
use crate::machine::report;
use crate::verdict::{Refusal, exit_code_table};
use crate::x86::features::features;

/// What prints a topic.
type Text = fn() -> String;

/// The topics by name.
const TOPICS: &[(&str, Text)] = &[
    ("exit-codes", exit_code_table),
    ("report", || report::SCHEMA.to_owned()),
    ("boot", || BOOT.to_owned()),
    ("gdb", || GDB.to_owned()),
    ("cpu", cpu),
    ("control", || CONTROL.to_owned()),
    ("coverage", || COVERAGE.to_owned()),
    ("audit-report", || audit::report::SCHEMA.to_owned()),
];

/// What `ringfence help test` says behind the options.
pub(super) const TEST: &str = "\
Where tests come from:
  kernel.elf, @NAME     an image is a test. One that takes part in the mailbox (it includes
                        guests/include/ringfence.h, or uses guests/rust) is as many as it
                        announces: IMAGE::TEST. Where what it announces cannot be told apart
                        and run, or it dies or fails before it announces any, all of it has
                        failed, whatever --filter and --shard say
  ringfence-tests.toml  [defaults], and a [[test]] each: the keys of a machine description
                        (image, memory, cpus, cmdline, modules, initrd, timeout, irqchip, ...),
                        and name, expect (a verdict's name or exit code), tags, backends,
                        retries, skip (a reason), mailbox, devices (that it needs: names as
                        `run --dry-run` shows them, irqchip=KIND)
  unittests.cfg         of kvm-unit-tests, as it is; the whole tree's directory will do
  a directory           one of these two files in it, else every image in it and below, through
                        links too (of a directory below that has one of the two, the tests in
                        that); not object files and dynamic programs, which are a host's

A test passes if it ends as it was to: with success, unless its `expect` says otherwise. Debug
exit 77 says that the guest skipped its own test, for the reason in its last line \"skipped: ...\".
A test of an image that announces them passes by debug exit 0 alone. Each test runs in a VM of its own, or in one
that is put back to where its image was ready (--boot-each: never), in worker processes, of which
one that crashes takes no other test with it. Durations are remembered in
$XDG_CACHE_HOME/ringfence: the longest begin first.

Exit codes:
  0     all that was to run did, and passed
  1     some did not pass, or did not run
  64    the command line was not understood
  65    with --coverage: all passed, and no image has counters; with --list: an image could not be
        asked for its tests
  66    a path or a test was not found (also one of several that --filter =NAME or tag:WORD
        names), or every test was skipped; a shard with nothing to run is 0
  71    the host refused something, or a report could not be written
  77    no usable KVM
  78    a file of tests was not understood
  128+n ended by signal n; what did not run is reported as such";

/// The boot protocols, by the names that `--boot` takes.
const BOOT: &str = "\
The protocol is found out from the image; --boot forces one.

  flat        a flat binary; --entry real|protected|long, --load-address. A sector of 512 bytes
              that ends in 55 AA is entered as a BIOS would, at 0000:7C00
  elf         ELF32 in flat protected mode; ELF64 in long mode, the low 4 GiB identity-mapped and
              each segment also at its link address
  multiboot   multiboot 1: ELF32, ELF64, or by the header's addresses
  multiboot2  multiboot 2
  pvh         an ELF image with the Xen note for a 32-bit PVH entry
  linux       bzImage (64-bit entry, or 32-bit where it has no other) and vmlinux

--dry-run shows what an image is found to be, and the state it is entered in. The state that each
protocol promises is documented in the library's `boot` module, with its source.
";

/// Coverage.
const COVERAGE: &str = "\
  clang ... -fprofile-instr-generate -fcoverage-mapping   (rustc: -C instrument-coverage)
  ringfence run kernel.elf --coverage kernel.profraw
  llvm-profdata merge kernel.profraw -o kernel.profdata
  llvm-cov report kernel.elf -instr-profile=kernel.profdata

The guest needs no file and no code for it: its counters are read out of its memory when it has ended,
however it ended. `ringfence test --coverage DIR` writes one file an image, summed over its tests, and
removes the .profraw files that lie in DIR first. Where many tests share a boot, each counts it.

The compiler's runtime library is not needed; the guest defines the symbol that asks for it:
  int __llvm_profile_runtime;                                           (C)
  #[unsafe(no_mangle)] static __llvm_profile_runtime: i32 = 0;          (Rust)
The image is an ELF file that keeps its symbols and its sections __llvm_prf_* and __llvm_cov*, and runs
where it was linked for, or loaded. llvm-profdata has to be of the compiler's own version, 14 to 17 or 19 and
newer; LLVM 18's format is written where the image defines __llvm_profile_raw_version.
";

/// The debugger.
const GDB: &str = "\
  ringfence run kernel.elf --gdb unix:/tmp/gdb --gdb-wait
  gdb kernel.elf -ex 'target remote /tmp/gdb' -ex 'break main' -ex continue

With --gdb-wait the guest's first instruction waits for gdb's `continue`; without, gdb may come at any
time, and the guest stops when it does. Each vCPU is a thread.

The registers are those of x86-64 in every mode. RIP is shown as a linear address, so that breakpoints
work in 16-bit code too; gdb disassembles as 64-bit code whatever the mode. Use `hbreak` for code that is
not in memory yet. A watchpoint takes one of four debug registers (more if it is wide or not aligned).

gdb takes a 32-bit ELF file for an i386's. Where the image is one, or the first file of --symbols is, the
registers have the i386's names too, $eip beside $rip, and backtraces and `set architecture i8086` work.
With such a file that ringfence was not given gdb says \"Remote 'g' packet reply is too long\".

  monitor walk ADDRESS      the page tables' entries on the way of an address
  monitor cpu               mode, segments, tables, control registers
  monitor exits             exits by kind, and accesses that nothing claimed
  monitor devices           devices and their addresses
  monitor physical on|off   take gdb's addresses as guest-physical
  monitor reset             `continue` then starts the image again
  monitor help              this, and what this KVM cannot do

What this KVM's debug exits can do is tried out when the session begins. Where neither INT3 nor the debug
registers stop the guest, or all four are in use, breakpoints are looked for by single steps: slowly, and
not in interrupt handlers, and a guest that single-steps itself loses its own steps. What cannot be done is
refused; the words are on ringfence's standard error, and on gdb's console when the guest runs on.

A guest that dies stops first, to be looked at; `continue` then ends it. `detach`, and a gdb that quits,
is killed or loses its connection, leave no breakpoint, and the guest runs on; `kill` ends it as SIGKILL
would. The exit code is the guest's verdict in any case. --timeout goes on while the guest stands still.
Whoever can connect has the guest in his hands.
";

/// The processor's models and features.
const CPU: &str = "\
  --cpu [MODEL][,vendor=NAME][,phys-bits=N][,hyperv][,+FEATURE][,-FEATURE]

The guest sees of the processor what KVM offers (max), or what a level of the x86-64 psABI has
(x86-64-v1 to x86-64-v4), with what a kernel needs beside it. What needs a feature that is taken away
goes with it, and so does its part of XSAVE. A feature that KVM does not offer is not to be had: a
warning says so, and the guest goes without. kvm-pv-eoi is offered by KVM and off unless named.

  vendor=NAME     12 characters, as GenuineIntel or AuthenticAMD
  phys-bits=N     bits of a physical address, at most what there are
  hyperv          Hyper-V's interface too, as far as KVM has it: clock, synthetic interrupts, timers

CPUID is what the guest is told. KVM does not keep a guest from every instruction that it is not
told of. The features, by Linux's or QEMU's names:

";

fn cpu() -> String {
    const WIDTH: usize = 100;
    let (mut text, mut line) = (CPU.to_owned(), String::new());
    for feature in features() {
        if line.len() + 1 + feature.name.len() > WIDTH {
            text += &format!(" {line}\n");
            line.clear();
        }
        line += &format!(" {}", feature.name);
    }
    text + &format!(" {line}\n")
}

/// The control socket.
const CONTROL: &str = r#"  ringfence run kernel.elf --control unix:/tmp/vm &
  ringfence control /tmp/vm stats

  status   what the machine does, and where each vCPU is
  stats    what its exits went into so far: by kind, by port, address and MSR, by function of the guest,
           the time that they took, and KVM's own counters
  stop     ends it, with the verdict of SIGTERM (exit code 143)
  pause    has all vCPUs stand still, until `resume`; with --gdb that is the debugger's. The time limit
           and the guest's clocks go on
  resume   lets them go on

With `run --stats` all is counted from the start. Without, counting exits costs nothing until `stats` is
first asked for: then exits by kind and KVM's counters are those since the start, and places, functions
and times are counted from then on; so ask twice.

The socket is its owner's alone (mode 0600); one that an earlier run left behind is taken over; it goes
when the guest has ended. One line of JSON is a request, one line the answer:

  {"command": "stats"}         or status, stop, pause, resume
  {"ok": {...}}                what was asked for; {} of stop, pause, resume
  {"error": "..."}             why not, in words

The answer to `status`:
  state            "running", "paused", "ended"
  wall_seconds     since the machine was built; timeout_seconds: its limit, or null
  restarts         starts after a reset
  ringfence, pid, image, backend, memory, cpus    as in the report (`ringfence help report`)
  vcpus            of each: state ("running", "stopped", "halted", "halted-for-ever", "no-answer"), rip (linear),
                   function
The answer to `stats`:
  wall_seconds, exits, unclaimed, stats    as in the report
  counted_seconds  the time that `stats` is about, but for KVM's counters; from_start: is it all?
  silent           numbers of vCPUs that did not answer within 5 s, and are missing

A request is at most 4096 bytes. Of more than 16 connections the one that was silent for longest ends.
"#;

pub(super) fn show(topic: Option<&str>) -> u8 {
    let mut command = Cli::command();
    let Some(topic) = topic else {
        return print(&command.render_help());
    };
    if let Some((_, text)) = TOPICS.iter().find(|(name, _)| *name == topic) {
        return super::printed(io::stdout().write_all(text().as_bytes()));
    }
    command.build();
    match command.find_subcommand_mut(topic) {
        Some(command) => print(&command.render_long_help()),
        None => {
            let topics: Vec<_> = TOPICS.iter().map(|(name, _)| *name).collect();
            super::tell(format_args!(
                "there is no help on {topic:?}; there is on run, test, test-runner, guests, doctor, audit, {}",
                topics.join(", ")
            ));
            super::code(Refusal::Usage)
        }
    }
}

/// In colour on a terminal only.
fn print(help: &StyledStr) -> u8 {
    let mut out = io::stdout();
    let written =
        if out.is_terminal() { write!(out, "{}", help.ansi()) } else { write!(out, "{help}") };
    super::printed(written)
}
