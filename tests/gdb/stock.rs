//! What a stock gdb does with a guest.

use super::common::wait_until;
use super::session::{Session, in_order};
use super::{Test, can};

pub const TESTS: &[Test] = &[
    ("gdb: stops before the first instruction, on unix:", first_unix),
    ("gdb: stops before the first instruction, on tcp:", first_tcp),
    ("gdb: one register file from real mode to long mode", modes),
    ("gdb: a 32-bit ELF file", elf32),
    ("gdb: software breakpoints", software),
    ("gdb: hardware breakpoints", hardware),
    ("gdb: more breakpoints than debug registers", many),
    ("gdb: single steps", steps),
    ("gdb: a watchpoint, or a refusal", watch),
    ("gdb: a watchpoint by single steps", watch_by_steps),
    ("gdb: ring 3, or what there is to say", ring3),
    ("gdb: every processor is a thread", threads),
    ("gdb: memory and registers are written", written),
    ("gdb: monitor commands", monitor),
    ("gdb: monitor reset", reset),
    ("gdb: Ctrl-C stops a guest that spins", ctrl_c),
    ("gdb: comes, goes and comes again", again),
    ("gdb: killed at a breakpoint", killed),
    ("gdb: kill ends the machine", kill),
    ("gdb: a guest that dies can be looked at", death),
];

fn first(kind: &str) {
    let session = Session::new("@walk", kind, &["--gdb-wait"]);
    let said = session.gdb(&["p $pc", "p $cr0", "x/2xb $pc", "detach"]);
    // cli; cld
    in_order(
        &said,
        &["_start", "$1 =", "0x8000 <_start>", "$2 = [ ET ]", "0xfa\t0xfc", "detached"],
    );
    in_order(&session.expect(0).out(), &["entered in real mode", "processors=1"]);
}

fn first_unix() {
    first("unix");
}

fn first_tcp() {
    first("tcp");
}

fn modes() {
    let session = Session::held("@walk");
    let mut commands = vec![];
    for place in ["break real_mode", "break protected_mode", "break long_mode", "break count"] {
        commands.extend([place, "continue", "info registers rip cs cr0 efer r15", "delete"]);
    }
    commands.push("continue");
    in_order(
        &session.gdb(&commands),
        &[
            "real_mode () at",
            "cr0 ",
            "[ ET ]",
            "r15 ",
            "protected_mode () at",
            "cs ",
            "0x18",
            "[ PE ET ]",
            "long_mode () at",
            "cs ",
            "0x8",
            "[ PE ET PG ]",
            "count (by=",
            "exited normally",
        ],
    );
    session.expect(0);
}

fn elf32() {
    let session = Session::held("@hello-elf32");
    let said = session.gdb_on(
        ringfence::guests::find("hello-elf32").expect("a guest").image,
        &[
            "show architecture",
            "p $pc == $rip",
            "set $edx = 0x12345678",
            "p/x $rdx",
            "set $rdx = 0x100000007",
            "p $edx",
            "p $cr0",
            "p/x $mxcsr",
            "set architecture i386:x86-64",
            "p/x $rdx",
            "detach",
        ],
    );
    let wanted = [
        "currently \"i386\"",
        "= 1",
        "= 0x12345678",
        "= 7",
        "[ PE ET ]",
        "= 0x1f80",
        "i386:x86-64",
        "= 0x100000007",
        "detached",
    ];
    in_order(&said, &wanted);
    session.expect(0);
}

fn software() {
    let session = Session::held("@walk");
    let said = session.gdb(&[
        "break count if by > 1",
        "continue",
        "p by",
        "bt 2",
        "finish",
        "p counter",
        "continue",
        "p by",
        "continue",
    ]);
    let wanted = [
        "Breakpoint 1, count (by=",
        "$1 = 2",
        "in guest (",
        "$2 = 3",
        "Breakpoint 1, count",
        "$3 = 3",
        "exited normally",
    ];
    in_order(&said, &wanted);
    assert_eq!(said.contains("looked for by single-stepping"), !can().hardware && !can().int3);
    in_order(&session.expect(0).out(), &["counter=6"]);
}

fn hardware() {
    let session = Session::held("@walk");
    // Before the image has run at all, and in a mode that is yet to come.
    let said = session.gdb(&["hbreak count", "continue", "continue", "p by", "thbreak print", "c"]);
    in_order(&said, &["Hardware assisted", "Breakpoint 1, count", "Breakpoint 1, count", "$1 = 2"]);
    session.expect(0);
}

fn many() {
    let session = Session::held("@walk");
    let said = session.gdb(&[
        "break three_steps",
        "break count",
        "break visit_ring3",
        "break on_trap",
        "break trap",
        "break print",
        "continue",
        "clear print",
        "continue",
        "continue",
        "disable 2",
        "continue",
    ]);
    in_order(&said, &["print (", "three_steps ()", "count (by=", "visit_ring3 ()"]);
    session.expect(0);
}

fn steps() {
    let session = Session::held("@walk");
    let said = session.gdb(&[
        "step-on",
        "step-on",
        "step-on",
        "p $pc",
        "break three_steps",
        "continue",
        "step-on",
        "p $eax",
        "step-on",
        "p $eax",
        "break count",
        "continue",
        "next",
        "next",
        "p counter",
        "detach",
    ]);
    in_order(&said, &["<real_mode>", "three_steps ()", "= 1", "= 3", "count (by=", "= 1"]);
    session.expect(0);
}

fn watch() {
    let session = Session::held("@walk");
    let said = session.gdb(&[
        "break count",
        "continue",
        "delete",
        "watch counter",
        "continue",
        "continue",
        "delete",
        "awatch spinning",
        "continue",
        "delete",
        "continue",
    ]);
    let ended = session.expect(0);
    if can().watch {
        let wanted = ["Old value = 0", "New value = 1", "Old value = 1", "New value = 3"];
        in_order(&said, &wanted);
    } else {
        in_order(&said, &["Could not insert hardware watchpoint 2"]);
        in_order(&ended.stderr, &["cannot set a watchpoint at 0x", "never fires data watchpoints"]);
        // The words reach gdb too, as soon as it takes any.
        in_order(&said, &["ringfence: cannot set a watchpoint", "exited normally"]);
    }
}

fn watch_by_steps() {
    let session = Session::held("@walk");
    let said = session.gdb(&[
        "break count",
        "continue",
        "delete",
        "set can-use-hw-watchpoints 0",
        "watch counter",
        "continue",
        "delete",
        "continue",
    ]);
    in_order(
        &said,
        &["Watchpoint 2: counter", "Old value = 0", "New value = 1", "exited normally"],
    );
    session.expect(0);
}

fn ring3() {
    let session = Session::held("@walk");
    let said = session.gdb(&[
        "break *user_part",
        "continue",
        "p $cs & 3",
        "step-on",
        "p $rax",
        "continue",
    ]);
    if can().step_in_ring3 {
        in_order(&said, &["user_part ()", "= 3", "= 7", "exited normally"]);
    } else {
        in_order(&said, &["breakpoints stop ring 0 only", "exited normally"]);
    }
    session.expect(0);
}

fn threads() {
    let session = Session::held("@walk-smp");
    let said = session.gdb(&[
        "info threads",
        "break arrive",
        "continue",
        "info threads",
        "p index",
        "thread 1",
        "p $cr0",
        "delete",
        "continue",
    ]);
    in_order(
        &said,
        &[
            "Thread 1.1",
            "real mode",
            "Thread 1.2",
            "not started",
            "Thread 1.3",
            "hit Breakpoint 1, arrive",
            "Thread 1.1",
            "long mode",
            "Switching to thread 1",
            "PG",
            "exited normally",
        ],
    );
    in_order(&session.expect(0).out(), &["processors=3"]);
}

fn written() {
    let session = Session::held("@walk");
    let said = session.gdb(&[
        "break three_steps",
        "continue",
        "set var counter = 100",
        "set $r15 = 0x1234567890abcdef",
        "p/x $r15",
        "set $xmm3.uint128 = 5",
        "p $xmm3.uint128",
        "p/x $mxcsr",
        "set $mxcsr = 0x9f80",
        "p/x $mxcsr",
        "p *(long*)(0xffffffff80000000 + (long)&counter)",
        "p *(long*)0x8000000000",
        "detach",
    ]);
    let wanted = [
        "= 0x1234567890abcdef",
        "= 5",
        "= 0x1f80",
        "= 0x9f80",
        "= 100",
        "Cannot access memory at address 0x8000000000",
    ];
    in_order(&said, &wanted);
    in_order(&session.expect(0).out(), &["counter=106"]);
}

fn monitor() {
    let session = Session::held("@walk");
    let said = session.gdb(&[
        "break count",
        "continue",
        "monitor walk 0xffffffff80008000",
        "monitor walk nonsense",
        "monitor cpu",
        "monitor exits",
        "monitor devices",
        "monitor physical on",
        "x/1xb 0x8000",
        "monitor physical off",
        "monitor physical maybe",
        "monitor nonsense",
        "monitor help",
        "detach",
    ]);
    in_order(
        &said,
        &[
            "PML4[",
            "physical 0x8000",
            "walk needs an address",
            "long mode",
            "cr3",
            "pio_out",
            "com1",
            "guest-physical",
            "0xfa",
            "through the page tables",
            "physical on, or physical off",
            "there is no command \"nonsense\"",
            "monitor",
            "walk ADDRESS",
            "detached",
        ]
        .map(|it| if it == "monitor" { "these there are" } else { it }),
    );
    session.expect(0);
}

fn reset() {
    let session = Session::held("@walk");
    let said = session.gdb(&[
        "break count",
        "continue",
        "monitor reset",
        "continue",
        "p $pc",
        "p $cr0",
        "continue",
        "p by",
        "delete",
        "continue",
    ]);
    in_order(
        &said,
        &[
            "count (by=",
            "before its first instruction",
            "<_start>",
            "[ ET ]",
            "count (by=",
            "= 1",
            "exited normally",
        ],
    );
    in_order(
        &session.expect(0).out(),
        &["entered in real mode", "entered in real mode", "counter=6"],
    );
}

fn ctrl_c() {
    let session = Session::running("@walk-spin").says("entered in long mode");
    let mut gdb = session.start_gdb(&[
        "p $pc",
        "echo going\n",
        "continue",
        "p spins > 0",
        "set var spinning = 0",
        "detach",
    ]);
    gdb = gdb.says("going");
    // Until it waits for the guest gdb takes the signal for its own.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let gdb = gdb.signal(libc::SIGINT).says("SIGINT").end();
    in_order(&gdb.out(), &["spin ()", "Program received signal SIGINT", "= 1", "detached"]);
    session.expect(0);
}

fn again() {
    let session = Session::running("@walk-spin").says("entered in long mode");
    let said = session.gdb(&["bt", "p spins > 0", "break count", "detach"]);
    in_order(&said, &["#0", "spin ()", "= 1", "detached"]);
    let said = session.gdb(&["p spinning", "set var spinning = 0", "continue"]);
    in_order(&said, &["= 1", "exited normally"]);
    in_order(&session.expect(0).out(), &["counter=6"]);
}

fn killed() {
    let session = Session::held("@walk");
    let gdb = session.start_gdb(&[
        "break count",
        "continue",
        "shell echo stopped here",
        "shell sleep 300",
    ]);
    let gdb = gdb.says("stopped here");
    super::common::kill(gdb.child.id() as i32, libc::SIGKILL);
    in_order(&session.expect(0).out(), &["counter=6"]);
    // What it started ends with it.
    super::common::kill(-(gdb.child.id() as i32), libc::SIGKILL);
    gdb.end();
}

fn kill() {
    let session = Session::held("@walk");
    in_order(&session.gdb(&["break count", "continue", "kill"]), &["count (by=", "killed"]);
    session.expect(128 + libc::SIGKILL);
}

fn death() {
    let session = Session::held("@triple-fault");
    let said = session.gdb(&["continue", "p $pc", "continue"]);
    in_order(&said, &["triple fault", "SIGABRT", "exited with code 0120"]);
    assert!(wait_until(|| session.told().contains("guest died")));
    session.expect(80);
}
