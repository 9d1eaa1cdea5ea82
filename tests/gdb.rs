//! The debugger: a stock gdb drives guests through both kinds of socket, and a client of our own
//! says what no gdb would. What each KVM's debug exits can do stands in one table, and the stub
//! has to find the same.
//!
//! All of them are quick enough for RINGFENCE_TEST_SET=small, so they do not look at it.

#[path = "gdb/client.rs"]
mod client;
mod common;
#[path = "gdb/rsp.rs"]
mod rsp;
#[path = "gdb/session.rs"]
mod session;
#[path = "gdb/stock.rs"]
mod stock;

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use ringfence::kvm::Backend;

/// What a KVM's debug exits can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Can {
    pub int3: bool,
    pub hardware: bool,
    pub watch: bool,
    pub step_in_ring3: bool,
    /// Every single step runs an instruction.
    pub steps_move: bool,
}

const ALL: Can =
    Can { int3: true, hardware: true, watch: true, step_in_ring3: true, steps_move: true };

/// By backend and rig; what is not here can do all, as hardware does.
#[rustfmt::skip]
const TABLE: &[(&str, &str, Can, &str)] = &[
    ("kvm_pvm", "", Can { int3: false, watch: false, step_in_ring3: false, ..ALL },
        "it runs ring 3 natively with debug registers of its own, and emulates ring 0 without looking at them for data"),
    ("kvm_amd", "amd", Can { int3: false, hardware: false, watch: false, ..ALL },
        "QEMU 7.2's TCG honours neither debug registers nor intercepts of INT3 for nested guests"),
    ("kvm_intel", "intel", Can { steps_move: false, ..ALL },
        "Bochs reports a single step that an interrupt of the host kept from its instruction"),
];

/// The row for the KVM that the tests run on.
pub fn can() -> Can {
    let (backend, rig) = place();
    let row = TABLE.iter().find(|(name, at, ..)| *name == backend && *at == rig);
    row.map_or(ALL, |(_, _, can, _)| *can)
}

fn place() -> (&'static str, String) {
    (Backend::detect().name(), std::env::var("RINGFENCE_RIG").unwrap_or_default())
}

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let (backend, rig) = place();
    println!("backend {backend}, rig {rig:?}: {:?}", can());
    for (backend, rig, can, why) in TABLE {
        println!("expected of {backend}, rig {rig:?}: {can:?}: {why}");
    }
    let there = Command::new("gdb").arg("--version").output().is_ok();
    // Where there must be one, its absence is a failure of each test.
    let must = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let skip = !there && !must;
    if skip {
        println!(
            "not run: the {} tests with a stock gdb: gdb is not installed",
            stock::TESTS.len()
        );
    }
    let trial = |(name, test): &Test| {
        let test = *test;
        Trial::test(*name, move || {
            test();
            Ok(())
        })
    };
    let by_steps = !can().hardware && !can().int3;
    if by_steps {
        for name in client::BEHIND_STI {
            println!("not run on {backend}: {name}: it steps over the instruction behind STI");
        }
        for name in client::STEPS_ITSELF {
            println!("not run on {backend}: {name}: steps look for breakpoints, and hide its own");
        }
    }
    let slow = backend == "kvm_intel" && rig == "intel";
    if slow {
        for name in client::LONG {
            println!("not run on {backend}: {name}: a megabyte, byte by byte, takes Bochs minutes");
        }
    }
    let is_left_out = |name: &str| {
        let hidden = client::BEHIND_STI.contains(&name) || client::STEPS_ITSELF.contains(&name);
        by_steps && hidden || slow && client::LONG.contains(&name)
    };
    let client = |test: &Test| trial(test).with_ignored_flag(is_left_out(test.0));
    let mut trials: Vec<_> = client::TESTS.iter().map(client).collect();
    trials.extend(stock::TESTS.iter().map(|test| trial(test).with_ignored_flag(skip)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
