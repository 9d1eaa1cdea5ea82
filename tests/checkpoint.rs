//! Boot once, test many: after a reset a machine is what it was at its checkpoint, whatever the
//! guest did to itself. Needs /dev/kvm.

mod common;

use std::time::Duration;

use common::{LIMIT, need_kvm};
use ringfence::devices::mailbox::SKIPPED;
use ringfence::irq::Irqchip;
use ringfence::kvm::ExitKind;
use ringfence::machine::{Builder, Checkpoint, Machine, Reached};
use ringfence::vcpu::Record;
use ringfence::{Verdict, guests};

fn kernel(name: &str) -> Builder {
    let guest = guests::find(name).expect("a carried guest");
    Machine::builder("kernel").image_bytes(guest.image.to_vec()).timeout(LIMIT)
}

/// Boots it to where it is ready.
fn ready(builder: Builder) -> (Machine, Checkpoint) {
    let mut machine = builder.build().unwrap();
    let reached = machine.run_to_ready();
    assert_eq!(reached, Reached::Ready, "{}", machine.serial_text());
    let checkpoint = machine.checkpoint().unwrap();
    (machine, checkpoint)
}

/// Runs one test from the checkpoint on.
fn test(machine: &mut Machine, checkpoint: &Checkpoint, name: &str) -> (Verdict, String) {
    machine.reset(checkpoint).unwrap();
    machine.set_test(name);
    let verdict = machine.run();
    (verdict, String::from_utf8_lossy(&machine.serial_since_checkpoint()).into_owned())
}

#[test]
fn a_whole_suite_in_one_boot() {
    need_kvm();
    let (mut machine, checkpoint) = ready(kernel("suite"));
    let names = machine.announced();
    assert_eq!(names.len(), 200);
    for name in &names {
        let (verdict, said) = test(&mut machine, &checkpoint, name);
        assert!(verdict.is_success(), "{name}: {verdict}\n{said}");
    }
    // Nobody chooses: the guest runs all by itself, in the machine as it was.
    let (verdict, said) = test(&mut machine, &checkpoint, "");
    assert!(verdict.is_success() && said.contains("200 tests, 0 failed"), "{verdict}\n{said}");
}

/// What a test that hangs is given.
const SHORT: Duration = Duration::from_secs(2);
/// Those of the bad suite that pass, though not all leave much behind.
const GOOD: [&str; 3] = ["good_before", "changes_every_register", "good_after"];

#[test]
fn a_test_that_goes_wrong_harms_no_other() {
    need_kvm();
    let (mut machine, checkpoint) = ready(kernel("suite-bad").memory(16 << 20));
    machine.set_timeout(Some(SHORT));
    let names = machine.announced();
    assert!(names.len() > 8, "{names:?}");
    for _ in 0..2 {
        for name in &names {
            let (verdict, said) = test(&mut machine, &checkpoint, name);
            match &**name {
                "is_skipped" => assert_eq!(verdict, Verdict::Failed { code: SKIPPED }),
                "fails_with_a_code" => assert_eq!(verdict, Verdict::Failed { code: 42 }),
                "fails" => assert_eq!(verdict, Verdict::Failed { code: 1 }),
                "hangs" => assert_eq!(verdict, Verdict::TimedOut { limit: SHORT }),
                _ if GOOD.contains(&&**name) => assert!(verdict.is_success(), "{verdict} {said}"),
                _ => assert!(!verdict.is_success(), "{name}: {verdict}\n{said}"),
            }
            let (verdict, said) = test(&mut machine, &checkpoint, "good_before");
            assert!(verdict.is_success(), "after {name}: {verdict}\n{said}");
        }
    }
}

/// The guest that gives everything a value of its own, with these interrupt controllers.
fn everything(irqchip: Irqchip) -> Builder {
    kernel("reset").memory(64 << 20).irqchip(irqchip)
}

#[test]
fn registers_devices_and_memory_are_put_back() {
    need_kvm();
    for irqchip in [Irqchip::None, Irqchip::Split, Irqchip::Full] {
        let (mut machine, mut checkpoint) = ready(everything(irqchip));
        for name in ["check", "corrupt", "scribble", "triple-fault", "spin", "pages=1000"] {
            machine.set_timeout(Some(if name == "spin" { SHORT } else { LIMIT }));
            let (verdict, _) = test(&mut machine, &checkpoint, name);
            machine.set_timeout(Some(LIMIT));
            match name {
                "spin" => assert_eq!(verdict, Verdict::TimedOut { limit: SHORT }),
                "check" | "pages=1000" => assert!(verdict.is_success(), "{name}: {verdict}"),
                _ => assert!(matches!(verdict, Verdict::Died { .. }), "{name}: {verdict}"),
            }
            // As the host sees it: a copy made now is the one that it was put back to.
            machine.reset(&checkpoint).unwrap();
            let again = machine.checkpoint().unwrap();
            let none: [String; 0] = [];
            assert_eq!(checkpoint.differences(&again), none, "{irqchip:?} after {name}");
            checkpoint = again;
            // As the guest sees it.
            let (verdict, said) = test(&mut machine, &checkpoint, "check");
            assert!(verdict.is_success(), "{irqchip:?} after {name}: {verdict}\n{said}");
        }
    }
}

/// Where KVM keeps shadows of the guest's page tables, nothing tells it that one was put back.
#[test]
fn ring_3_sees_the_page_tables_that_were_put_back() {
    need_kvm();
    let (mut machine, checkpoint) = ready(everything(Irqchip::None));
    for name in ["ring3", "remap", "ring3", "remap", "ring3"] {
        let (verdict, said) = test(&mut machine, &checkpoint, name);
        assert!(verdict.is_success(), "{name}: {verdict}\n{said}");
    }
}

/// Memory that nobody had touched at the checkpoint lies in memory slots of its own.
#[test]
fn memory_that_was_first_touched_later_is_put_back() {
    need_kvm();
    let (mut machine, mut checkpoint) = ready(kernel("reset").memory(3 << 30));
    for mib in [200, 300, 2900, 300] {
        for name in [format!("far={mib}"), format!("clean={mib}"), "check".to_owned()] {
            let (verdict, said) = test(&mut machine, &checkpoint, &name);
            assert!(verdict.is_success(), "{name}: {verdict}\n{said}");
        }
        machine.reset(&checkpoint).unwrap();
        checkpoint = machine.checkpoint().unwrap();
    }
}

/// Several processors, started before the checkpoint: what the others were doing is put back too.
#[test]
fn every_processor_is_put_back() {
    need_kvm();
    let guest = || kernel("reset-smp").cpus(3).irqchip(Irqchip::Full);
    let (mut machine, mut checkpoint) = ready(guest().cmdline("cpus=3"));
    for name in ["check", "change", "halt", "park", "restart", "triple-fault", "park", "check"] {
        let (verdict, said) = test(&mut machine, &checkpoint, name);
        match name {
            "triple-fault" => assert!(matches!(verdict, Verdict::Died { .. }), "{verdict}"),
            _ => assert!(verdict.is_success(), "{name}: {verdict}\n{said}"),
        }
        machine.reset(&checkpoint).unwrap();
        let again = machine.checkpoint().unwrap();
        let none: [String; 0] = [];
        assert_eq!(checkpoint.differences(&again), none, "after {name}");
        checkpoint = again;
        let (verdict, said) = test(&mut machine, &checkpoint, "check");
        assert!(verdict.is_success(), "after {name}: {verdict}\n{said}");
    }
}

/// Processors that nobody had started at the checkpoint wait again, and can be started again.
#[test]
fn processors_that_waited_wait_again() {
    need_kvm();
    let guest = kernel("reset-smp").cpus(3).irqchip(Irqchip::Full);
    let (mut machine, checkpoint) = ready(guest.cmdline("cpus=3 late=1"));
    for name in ["still", "check", "still", "park", "still", "check", "check", "still"] {
        let (verdict, said) = test(&mut machine, &checkpoint, name);
        assert!(verdict.is_success(), "{name}: {verdict}\n{said}");
    }
}

/// The last exits of the first processor but for interruptions, which come when they like.
fn exits(machine: &Machine) -> Vec<Record> {
    let all = machine.last_exits(0, 128);
    all.into_iter().filter(|record| record.kind != ExitKind::Interrupted).collect()
}

/// An autopsy tells of the run since the reset, whatever died before.
#[test]
fn an_autopsy_is_of_the_last_run() {
    need_kvm();
    let (mut machine, checkpoint) = ready(kernel("suite-bad").memory(16 << 20));
    machine.set_timeout(Some(SHORT));
    let mut seen: Vec<Vec<Record>> = Vec::new();
    let names = ["dies", "changes_every_register", "panics", "hangs", "dies", "good_after", "dies"];
    for name in names {
        let (verdict, said) = test(&mut machine, &checkpoint, name);
        let Some(autopsy) = machine.autopsy() else {
            assert!(verdict.is_success(), "{name}: {verdict}\n{said}");
            continue;
        };
        let function = format!("ringfence_test_{name}");
        let begin = match name {
            "dies" => "invalid opcode (ud2) in",
            "panics" => "the guest reported a panic in",
            _ => "still running after 2s in",
        };
        let summary = &autopsy.summary;
        assert!(summary.starts_with(&format!("{begin} `{function}+")), "{name}: {summary}");
        let backtrace = &autopsy.cpus[0].backtrace;
        let place = backtrace.first().and_then(|frame| frame.place.as_ref());
        assert!(place.is_some_and(|place| place.function == function), "{name}: {place:?}");
        assert!(backtrace.len() > 1, "{backtrace:?}");
        if name == "dies" {
            seen.push(exits(&machine));
        }
    }
    assert!(seen.len() == 3 && seen[0].len() > 8 && seen[0].iter().all(|r| r.address != 0x70));
    assert!(seen.iter().all(|exits| *exits == seen[0]), "{seen:?}");
}

#[test]
fn a_checkpoint_is_of_one_machine_and_the_newest_counts() {
    need_kvm();
    let (mut machine, old) = ready(everything(Irqchip::None));
    let new = machine.checkpoint().unwrap();
    assert!(machine.reset(&old).is_err());
    let (mut other, _) = ready(everything(Irqchip::None));
    assert!(other.reset(&new).is_err());
    assert!(test(&mut machine, &new, "check").0.is_success());
    assert!(machine.checkpoint().is_err(), "of a machine that has ended");
    assert!(test(&mut machine, &new, "nothing").0.is_success());
}
