//! Ringfence as a library, as a kernel's own tests use it: a machine, its verdict, what it
//! printed. Needs /dev/kvm.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{LIMIT, need_kvm};
use ringfence::config::{OnHalt, OnReset};
use ringfence::inspect::CodeMode;
use ringfence::machine::{Builder, Machine};
use ringfence::verdict::{Death, Refusal, Success};
use ringfence::x86::Mode;
use ringfence::{Verdict, guests};

/// A kernel to be tested; yours comes from `include_bytes!` or a path.
fn kernel(name: &str) -> Builder {
    let guest = guests::find(name).expect("a carried guest");
    Machine::builder("kernel").image_bytes(guest.image.to_vec()).timeout(LIMIT)
}

fn flat(name: &str, cmdline: &str) -> Builder {
    kernel(name).entry(Mode::Long).cmdline(cmdline)
}

#[test]
fn a_kernel_that_prints_and_says_success() {
    need_kvm();
    let mut machine = kernel("hello-elf64").memory(16 << 20).build().unwrap();
    let verdict = machine.run();
    assert!(verdict.is_success(), "{verdict}\n{}", machine.serial_text());
    assert_eq!(verdict, Verdict::Success(Success::DebugExit));
    assert_eq!(machine.serial(), b"hello from long mode at 0x100000\n");
}

#[test]
fn a_failure_code_comes_back_unchanged() {
    need_kvm();
    for code in [1, 62, 63, 300, u32::MAX] {
        let mut machine = flat("exit-0", &format!("code={code}")).build().unwrap();
        assert_eq!(machine.run(), Verdict::Failed { code });
        assert_eq!(machine.report().guest_code, Some(code));
    }
}

#[test]
fn a_kernel_that_hangs_is_ended() {
    need_kvm();
    let limit = Duration::from_secs(2); // the slowest host prints within it
    let mut machine = flat("spin", "how=spin").timeout(limit).build().unwrap();
    let began = Instant::now();
    assert_eq!(machine.run(), Verdict::TimedOut { limit });
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(machine.serial_text(), "spin\n");
}

#[test]
fn time_that_is_up_before_the_first_instruction() {
    need_kvm();
    let mut machine = flat("spin", "").timeout(Duration::from_nanos(1)).build().unwrap();
    assert!(matches!(machine.run(), Verdict::TimedOut { .. }));
    let autopsy = machine.autopsy().unwrap();
    let line = "not started within 1ns: the guest's first instruction is at 0x100000";
    assert_eq!(autopsy.summary, line);
    assert_eq!(autopsy.cpus[0].mode, Some(CodeMode::Long));
}

#[test]
fn deaths_have_their_cause() {
    need_kvm();
    for (how, expected) in [
        ("triple-fault", Death::TripleFault),
        ("halt", Death::Halted),
        ("panic", Death::Panic),
        ("reset-cf9", Death::Reset),
    ] {
        let mut machine = flat("triple-fault", &format!("how={how}")).build().unwrap();
        let verdict = machine.run();
        let Verdict::Died { cause, .. } = verdict else { panic!("{how}: {verdict}") };
        assert_eq!(cause, expected, "{verdict}");
    }
    let halts = || flat("triple-fault", "how=halt").on_halt(OnHalt::Success);
    assert_eq!(halts().build().unwrap().run(), Verdict::Success(Success::Halted));
    let resets = flat("triple-fault", "how=reset-cf9").on_reset(OnReset::Success);
    assert_eq!(resets.build().unwrap().run(), Verdict::Success(Success::Reset));
}

#[test]
fn serial_input_from_memory() {
    need_kvm();
    let echo = kernel("echo").entry(Mode::Protected).serial_input("one\nquit\n");
    let mut machine = echo.build().unwrap();
    assert!(machine.run().is_success());
    assert_eq!(machine.serial_text(), "ready\necho: one\necho: quit\n");
}

#[test]
fn modules_and_the_command_line_reach_the_kernel() {
    need_kvm();
    let builder = kernel("hello-multiboot").cmdline("root=none").module("@hello-real", "first");
    let mut machine = builder.build().unwrap();
    assert!(machine.run().is_success());
    let said = machine.serial_text();
    for text in ["root=none", "@hello-real first", "modules=1", "module0.size=512"] {
        assert!(said.contains(text), "no {text} in {said}");
    }
}

#[test]
fn machines_in_parallel_do_not_meet() {
    need_kvm();
    let one = |code: u32| {
        let mut machine = flat("exit-0", &format!("code={code}")).memory(16 << 20).build().unwrap();
        (machine.run(), machine.serial_text())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (1..=6).map(|code| (code, scope.spawn(move || one(code)))).collect();
        for (code, thread) in threads {
            let (verdict, said) = thread.join().unwrap();
            assert_eq!(verdict, Verdict::Failed { code });
            assert!(said.contains(&format!("code={code}")), "{said}");
        }
    });
}

#[test]
fn a_thread_runs_what_another_one_built() {
    need_kvm();
    let mut machine = kernel("smp").entry(Mode::Long).cmdline("cpus=2").cpus(2);
    machine = machine.irqchip(ringfence::irq::Irqchip::Full);
    let mut machine = machine.build().unwrap();
    let (verdict, said) =
        thread::spawn(move || (machine.run(), machine.serial_text())).join().unwrap();
    assert!(verdict.is_success(), "{verdict}\n{said}");
    assert!(said.contains("arrived=2"), "{said}");
}

#[test]
fn a_machine_may_be_dropped_without_a_run() {
    need_kvm();
    let files = || std::fs::read_dir("/proc/self/task").unwrap().count();
    for _ in 0..20 {
        let built = kernel("echo").entry(Mode::Protected).serial_input("quit\n").cpus(2).build();
        drop(built.unwrap());
    }
    // Other tests have threads of their own, but not twenty times two.
    assert!(files() < 40, "threads are left");
    assert!(kernel("hello-elf64").build().unwrap().run().is_success());
}

#[test]
fn a_second_run_gives_the_same_verdict() {
    need_kvm();
    let mut machine = flat("exit-0", "code=7").build().unwrap();
    assert_eq!(machine.run(), Verdict::Failed { code: 7 });
    let (said, report) = (machine.serial(), machine.report());
    assert_eq!(machine.run(), Verdict::Failed { code: 7 });
    assert_eq!(machine.serial(), said);
    assert_eq!(machine.report().wall_seconds, report.wall_seconds);
    assert_eq!(machine.report().exits, report.exits);
}

#[test]
fn a_machine_that_cannot_be_built_says_whose_fault_it_is() {
    need_kvm();
    let refusal = |builder: Builder| builder.build().map(|_| ()).unwrap_err().refusal();
    let bytes = |bytes: &[u8]| Machine::builder("bytes").image_bytes(bytes.to_vec());
    assert_eq!(refusal(bytes(b"")), Refusal::BadImage);
    assert_eq!(refusal(bytes(b"nothing known")), Refusal::BadImage);
    assert_eq!(refusal(Machine::builder("/nonexistent")), Refusal::NoImage);
    assert_eq!(refusal(kernel("hello-elf64").memory(12)), Refusal::BadConfig);
    assert_eq!(refusal(kernel("hello-elf64").cpus(0)), Refusal::BadConfig);
    assert_eq!(refusal(kernel("hello-elf64").module("/nonexistent", "")), Refusal::NoImage);
    assert_eq!(refusal(bytes(&[0; 2 << 20]).entry(Mode::Long).memory(1 << 20)), Refusal::BadImage);
}
