//! What a client of our own says to the stub; on every backend.

use std::time::Duration;

use super::common::{self, Dir, wait_until};
use super::rsp::{Client, hex, unhex};
use super::session::{Session, address, hlt, in_order};
use super::{Test, can};

const CLI: u8 = 0xFA;
const STI: u8 = 0xFB;
const RET: u8 = 0xC3;

pub const TESTS: &[Test] = &[
    ("client: one register file from real mode to long mode", modes),
    ("client: a 32-bit ELF file's registers have a second name", halves),
    ("client: the stub finds what the table says", limits),
    ("client: single steps", steps),
    ("client: a watchpoint, or a refusal", watch),
    ("client: a guest that steps itself", steps_itself),
    ("client: a reset of the debugger's is no success", reset_is_no_success),
    ("client: a guest that spins is interrupted", interrupt),
    ("client: every processor is a thread", threads),
    ("client: processors that come to a breakpoint together", together),
    ("client: memory, by page tables and physical", memory),
    ("client: a lost connection leaves the guest running", lost),
    ("client: a second one waits for the first to go", second),
    ("client: garbage neither ends the stub nor the guest", garbage),
    ("client: a packet that is not understood", not_understood),
    ("client: what is no packet", no_packet),
    ("client: a packet that never ends", endless),
    ("client: a step over HLT", halt),
    ("client: a step over the last HLT", last_halt),
    ("client: MXCSR", mxcsr),
    ("client: bad addresses", addresses),
    ("client: a guest that was held until its time was up", held),
];

/// Those that need a breakpoint on the instruction behind STI. Where breakpoints are looked for by
/// single steps there is none: the step of STI ends behind the next instruction (Intel SDM
/// Vol. 3A, 6.8.3).
pub const BEHIND_STI: &[&str] = &["client: a step over HLT"];

/// Those whose guest single-steps itself: KVM tells its steps and the debugger's in the same words.
pub const STEPS_ITSELF: &[&str] = &["client: a guest that steps itself"];

/// Those that take minutes in the VT-x rig.
pub const LONG: &[&str] = &["client: a packet that never ends"];

/// Runs to a breakpoint that is set, and taken away again.
#[track_caller]
fn run_to(client: &mut Client, place: u64) -> String {
    assert_eq!(client.ask(&format!("Z0,{place:x},1")), "OK");
    let stop = client.ask("vCont;c");
    assert_eq!(client.ask(&format!("z0,{place:x},1")), "OK");
    stop
}

fn modes() {
    let session = Session::held("@walk");
    let mut client = session.client();
    assert!(client.ask("?").starts_with('T'));
    let first = client.registers();
    assert_eq!(first.rip(), address("_start"));
    for place in ["real_mode", "protected_mode", "long_mode", "count"] {
        let stop = run_to(&mut client, address(place));
        assert!(stop.starts_with("T05"), "{place}: {stop}");
        let now = client.registers();
        assert_eq!((now.rip(), now.0.len()), (address(place), first.0.len()), "{place}");
    }
    assert_eq!(client.ask("vCont;c"), "W00");
    in_order(&session.expect(0).out(), &["entered in real mode", "counter=6"]);
}

/// In a `G` packet the name counts whose value has changed.
fn halves() {
    const RAX: usize = 0;
    let session = Session::held("@hello-elf32");
    let mut client = session.client();
    client.ask("?");
    let wide = 8 * 16 + 8 + 4 + 6 * 4 + 8 * 10 + 8 * 4 + 16 * 16 + 4 + 2 * 8 + 7 * 8;
    let mut file = client.registers();
    assert_eq!(file.0.len(), wide + 9 * 4);
    file.0[wide..wide + 4].copy_from_slice(&5_u32.to_le_bytes());
    assert_eq!(client.ask(&format!("G{}", hex(&file.0))), "OK");
    let mut file = client.registers();
    assert_eq!(file.general(RAX), 5);
    file.0[..8].copy_from_slice(&0x1_0000_0006_u64.to_le_bytes());
    assert_eq!(client.ask(&format!("G{}", hex(&file.0))), "OK");
    let file = client.registers();
    assert_eq!((file.general(RAX), &file.0[wide..wide + 4]), (0x1_0000_0006, &[6, 0, 0, 0][..]));
    assert_eq!(client.ask("D"), "OK");
    session.expect(0);
}

fn limits() {
    let session = Session::held("@walk");
    let mut client = session.client();
    let help = client.monitor("help");
    let can = can();
    let says = |text: &str| help.contains(text);
    assert_eq!(!can.int3 && can.hardware, says("INT3 does not stop"), "{help}");
    assert_eq!(!can.hardware, says("looked for by single-stepping"), "{help}");
    assert_eq!(!can.watch, says("watchpoints never fire"), "{help}");
    assert_eq!(!can.step_in_ring3, says("ring 3 cannot be single-stepped"), "{help}");
    assert!(!says("nothing stops the guest") && !says("instructions cannot"), "{help}");
    assert_eq!(client.ask("D"), "OK");
    session.expect(0);
}

/// A single step; again where this KVM reports some that were none.
#[track_caller]
fn step(client: &mut Client) {
    const TRIES: usize = 5;
    let before = client.registers().rip();
    for _ in 0..if can().steps_move { 1 } else { TRIES } {
        let stop = client.ask("vCont;s:1");
        assert!(stop.starts_with("T05"), "{stop}");
        if client.registers().rip() != before {
            return;
        }
    }
    panic!("no step from {before:#x}");
}

fn steps() {
    let session = Session::held("@walk");
    let mut client = session.client();
    client.ask("?");
    for n in 0..3 {
        assert_eq!(client.registers().rip() > address("_start"), n > 0);
        step(&mut client);
    }
    // cli, cld and ljmp: in real mode.
    assert_eq!(client.registers().rip(), address("real_mode"));
    run_to(&mut client, address("three_steps"));
    for rax in [1, 3] {
        step(&mut client);
        assert_eq!(client.registers().general(0), rax);
    }
    assert_eq!(client.ask("D"), "OK");
    session.expect(0);
}

fn watch() {
    let session = Session::held("@walk");
    let mut client = session.client();
    client.ask("?");
    run_to(&mut client, address("count"));
    let set = client.ask(&format!("Z2,{:x},8", address("counter")));
    if can().watch {
        assert_eq!(set, "OK");
        let stop = client.ask("vCont;c");
        assert!(stop.contains("watch:"), "{stop}");
    } else {
        assert!(set.starts_with('E'), "{set}");
        assert!(wait_until(|| session.told().contains("never fires data watchpoints")));
    }
    assert_eq!(client.ask("D"), "OK");
    in_order(&session.expect(0).out(), &["counter=6"]);
}

fn interrupt() {
    let session = Session::running("@walk-spin").says("entered in long mode");
    let mut client = session.client();
    client.ask("?");
    for _ in 0..3 {
        client.send("vCont;c");
        client.raw(b"\x03");
        let stop = client.packet().expect("a stop");
        assert!(stop.starts_with("T02"), "{stop}");
    }
    assert_eq!(client.ask(&format!("M{:x},4:00000000", address("spinning"))), "OK");
    assert_eq!(client.ask("vCont;c"), "W00");
    session.expect(0);
}

fn threads() {
    let session = Session::held("@walk-smp");
    let mut client = session.client();
    client.ask("?");
    run_to(&mut client, address("arrive"));
    let threads = client.ask("qfThreadInfo");
    assert_eq!(threads.matches(',').count(), 2, "{threads}");
    let numbers = threads.trim_start_matches('m').split(',').map(str::to_owned);
    let mut places = vec![];
    for thread in numbers {
        assert_eq!(client.ask(&format!("Hg{thread}")), "OK");
        places.push(client.registers().rip());
    }
    assert!(places[1..].contains(&address("arrive")) && places[0] != places[1], "{places:x?}");
    assert_eq!(client.ask("vCont;c"), "W00");
    in_order(&session.expect(0).out(), &["processors=3"]);
}

/// One stop is told, and the breakpoint is gone when the other processor goes on: it is not the
/// guest's own exception.
fn together() {
    let session = Session::held("@walk-smp");
    let mut client = session.client();
    client.ask("?");
    run_to(&mut client, address("arrive"));
    let spinning = address("spinning");
    assert_eq!(client.ask(&format!("M{spinning:x},4:01000000")), "OK");
    for place in ["turn", "turn_back"].into_iter().cycle().take(30) {
        let stop = run_to(&mut client, address(place));
        assert!(stop.starts_with("T05"), "{place}: {stop}");
    }
    assert_eq!(client.ask(&format!("M{spinning:x},4:00000000")), "OK");
    assert_eq!(client.ask("vCont;c"), "W00");
    in_order(&session.expect(0).out(), &["processors=3"]);
}

/// Its own #DB, which a debug register of the debugger's has KVM give to us, comes back to it
/// with what DR6 tells of it.
fn steps_itself() {
    let session = Session::held("@step");
    let mut client = session.client();
    client.ask("?");
    assert_eq!(client.ask("Z1,1000,1"), "OK");
    assert_eq!(client.ask("vCont;c"), "W00");
    in_order(&session.expect(0).out(), &["steps=4 told=4"]);
}

/// What the command line says of the guest's resets is not of the debugger's.
fn reset_is_no_success() {
    let session = Session::new("@walk", "unix", &["--gdb-wait", "--on-reset", "success"]);
    let mut client = session.client();
    client.ask("?");
    run_to(&mut client, address("count"));
    client.monitor("reset");
    assert!(client.ask("vCont;c").starts_with('T'), "before its first instruction again");
    assert_eq!(client.ask("D"), "OK");
    in_order(&session.expect(0).out(), &["counter=6"]);
}

fn memory() {
    let session = Session::held("@walk");
    let mut client = session.client();
    client.ask("?");
    let counter = address("counter");
    let high = 0xFFFF_FFFF_8000_0000 + counter;
    run_to(&mut client, address("count"));
    assert_eq!(client.ask(&format!("M{high:x},8:{}", hex(&100_u64.to_le_bytes()))), "OK");
    assert_eq!(unhex(&client.ask(&format!("m{counter:x},8"))), 100_u64.to_le_bytes());
    assert!(client.ask("m8000000000,8").starts_with('E'));
    in_order(&client.monitor(&format!("walk {high:#x}")), &["PML4[", "PD[", "physical 0x"]);
    in_order(&client.monitor("walk 0x8000000000"), &["not mapped"]);
    client.monitor("physical on");
    assert!(client.ask(&format!("m{high:x},8")).starts_with('E'));
    assert_eq!(unhex(&client.ask(&format!("m{counter:x},8"))), 100_u64.to_le_bytes());
    client.monitor("physical off");
    assert_eq!(client.ask("D"), "OK");
    in_order(&session.expect(0).out(), &["counter=106"]);
}

/// At a stop, and while the guest runs.
fn lost() {
    let session = Session::held("@walk-spin");
    let mut client = session.client();
    client.ask("?");
    assert_eq!(client.ask(&format!("Z0,{:x},1", address("spin"))), "OK");
    drop(client);
    let session = session.says("entered in long mode");
    let mut client = session.client();
    client.ask("?");
    client.send("vCont;c");
    drop(client);
    // It may not have come to its loop yet.
    let spins = || {
        let mut client = session.client();
        assert!(client.ask("?").starts_with('T'));
        unhex(&client.ask(&format!("m{:x},8", address("spins"))))
    };
    assert!(wait_until(|| spins() != [0; 8]), "the breakpoint at spin stayed");
    let mut client = session.client();
    client.ask("?");
    assert_eq!(client.ask(&format!("M{:x},4:00000000", address("spinning"))), "OK");
    drop(client);
    session.expect(0);
}

fn second() {
    let session = Session::held("@walk");
    let mut first = session.client();
    first.ask("?");
    let mut second = session.client();
    second.raw(b"$?#3f");
    assert_eq!(second.byte(), None, "the second is served beside the first");
    assert_eq!(first.registers().rip(), super::session::address("_start"));
    drop((first, second));
    session.expect(0);
}

fn garbage() {
    // A guest that does not end when one of them lets it go.
    let session = Session::held("@walk-spin");
    let packets: &[&[u8]] = &[
        b"\x00\xff\xfe garbage \r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"$#00$$##$?#zz$?",
        b"$qSupported#00",
        b"$g#00$m0,ffffffffffffffff#00",
        b"$Z9,0,0#8d$Z0,,#d2$vCont;x#24$H#48$T#54$qRcmd,zz#1b$mzz#61$M0,4:#be",
        b"$vCont;c:ffffffff#00$Hg0#df$Hc-1#09$p#70$P=#ad$G#47$X0,0:#d2",
        b"\x03\x03\x03----++++",
    ];
    for bytes in packets {
        let mut client = Client::with_patience(&session.address, Duration::from_secs(1));
        client.raw(bytes);
        while client.byte().is_some() {}
        drop(client);
    }
    let mut client = session.client();
    client.send("?");
    let stop = client.packet().unwrap_or_default();
    assert!(stop.starts_with('T'), "it can still be debugged: {stop:?} {}", session.told());
    client.send("k");
    let ended = session.expect(128 + libc::SIGKILL);
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

/// The session goes on, with what was agreed in it.
fn not_understood() {
    let session = Session::held("@walk-smp");
    let mut client = session.client();
    client.ask("?");
    client.ask("qSupported:multiprocess+");
    run_to(&mut client, address("arrive"));
    assert_eq!(client.ask("Hgp1.1"), "OK");
    let first = client.registers().rip();
    assert_ne!(first, address("arrive"));
    let none = ["qThreadExtraInfo,100000000", "Hg100000000", "g", "Hg100000001", "g", "Hgp1.1"];
    for packet in none {
        client.ask(packet);
    }
    for packet in ["G00", "Hg-1", "Z0,zz,1", "mzz", "P=", "vCont;x"] {
        let answer = client.ask(packet);
        assert!(answer.starts_with('E') || answer.is_empty(), "{packet}: {answer}");
        assert_eq!(client.registers().rip(), first, "{packet}");
    }
    assert!(client.ask("qfThreadInfo").starts_with("mp01.01"));
    client.raw(b"$g#00");
    assert_eq!(client.byte(), Some(b'-'), "to a wrong checksum");
    assert_eq!(client.ask("D;1"), "OK");
    session.expect(0);
}

/// It ends the session, with words.
fn no_packet() {
    let session = Session::held("@walk");
    let mut client = session.client();
    client.ask("?");
    client.raw(b"GET / HTTP/1.1\r\n\r\n");
    while client.byte().is_some() {}
    let ended = session.expect(0);
    assert!(ended.stderr.contains("gdb: hung up, and the guest runs on"), "{ended:?}");
}

/// The vCPU waits for the interrupt behind the HLT, and nowhere else.
fn halt() {
    let session = Session::held("@timer");
    let mut client = session.client();
    client.ask("?");
    let hlt = hlt("timer", STI, CLI);
    assert!(run_to(&mut client, hlt).starts_with("T05"));
    assert!(client.ask("vCont;s:1").starts_with("T05"));
    assert_eq!(client.registers().rip(), hlt + 1);
    assert_eq!(client.ask("D"), "OK");
    in_order(&session.expect(0).out(), &["ticks=5"]);
}

/// Without interrupt controllers HLT is the end.
fn last_halt() {
    let session = Session::held("@halt");
    let mut client = session.client();
    client.ask("?");
    let hlt = hlt("halt", CLI, RET);
    assert!(run_to(&mut client, hlt).starts_with("T05"));
    assert!(client.ask("vCont;s:1").starts_with("T06"));
    assert_eq!(client.ask("D"), "OK");
    let ended = session.expect(83);
    assert!(ended.stderr.contains(&format!("at {hlt:#x} (hlt")), "{ended:?}");
}

fn mxcsr() {
    let session = Session::held("@walk");
    let mut client = session.client();
    client.ask("?");
    const MXCSR: &str = "38";
    assert_eq!(client.ask(&format!("p{MXCSR}")), "801f0000");
    assert_eq!(client.ask(&format!("P{MXCSR}=809f0000")), "OK");
    assert_eq!(client.ask(&format!("p{MXCSR}")), "809f0000");
    assert!(client.ask(&format!("P{MXCSR}=ffffffff")).starts_with('E'));
    assert_eq!(client.ask("D"), "OK");
    session.expect(0);
}

/// A packet without an end, and an answer without one.
fn endless() {
    let session = Session::held("@walk");
    let mut client = session.client();
    client.raw(b"$m");
    let hung_up = (0..256).any(|_| !client.raw(&[b'0'; 4096]));
    assert!(hung_up, "a megabyte was taken for a packet");
    session.expect(0); // which its going has let go
    let session = Session::held("@walk");
    let mut client = session.client();
    client.ask("?");
    // 128 MiB, by physical addresses.
    client.monitor("physical on");
    assert_eq!(client.ask("m0,8000000"), "E16");
    assert_eq!(client.ask("D"), "OK");
    let ended = session.expect(0);
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

/// Nobody comes.
fn held() {
    let dir = Dir::new();
    let at = format!("unix:{}", dir.join("gdb").display());
    let run = common::ringfence(["run", "@walk", "--gdb-wait", "--timeout", "1s", "--gdb", &at]);
    let ended = run.expect(124);
    assert!(ended.stderr.contains("1s (a debugger or a pause held it)"), "{ended:?}");
}

fn addresses() {
    let bad =
        ["", "tcp", "tcp:", "tcp:1234", "tcp:localhost", "tcp:localhost:70000", "unix:", "udp:x:1"];
    for address in bad {
        let ended = common::ringfence(["run", "@walk", "--gdb", address]).expect(64);
        assert!(ended.stderr.contains("tcp:HOST:PORT") || address.is_empty(), "{ended:?}");
    }
    common::run("run @walk --gdb-wait").expect(64);
    let dir = Dir::new();
    let file = format!("unix:{}", dir.file("file", "").display());
    let nowhere = format!("unix:{}", dir.join("no/such/dir").display());
    for address in [&file, &nowhere, "tcp:no.such.host.invalid:1", "tcp:192.0.2.1:1"] {
        let ended = common::ringfence(["run", "@walk", "--gdb", address]).expect(71);
        ended.one_line("cannot listen for gdb on");
    }
    let session = Session::held("@walk");
    let mut client = session.client(); // so that who looks whether the socket is taken lets nothing go
    client.ask("?");
    let taken = format!("unix:{}", session.address);
    common::ringfence(["run", "@walk", "--gdb", &taken]).expect(71).one_line("cannot listen");
    assert_eq!(client.ask("D"), "OK");
    session.expect(0);
}
