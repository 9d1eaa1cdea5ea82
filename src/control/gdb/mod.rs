//! The gdb stub: one gdb at a time, on a thread of its own, over a socket.
//!
//! - Every vCPU is a thread of gdb's; all stop together.
//! - The register file is that of x86-64 in every mode. RIP is shown as a linear address;
//!   gdb disassembles as 64-bit code whatever the mode, so in 16- and 32-bit code the bytes
//!   (`x/8xb $rip`) are right and the mnemonics may not be. With a 32-bit ELF file the register
//!   file has an i386's names too, and gdb may be one for either.
//! - `break` patches INT3 into the guest's memory, by the page tables of the vCPU that
//!   stopped. Where the address is not mapped yet, or this KVM does not give INT3 to
//!   debuggers, it takes one of the four debug registers instead; where those do not work
//!   or are in use, the vCPUs single-step and look.
//! - What a KVM cannot do is refused: gdb gets an error number, its console the words as soon
//!   as it takes any, and standard error has them at once.
//! - A guest that dies stops before its end, so that it can be looked at; when it is let go
//!   the machine ends, with the guest's verdict as ever. A guest that ends by itself is
//!   gone: gdb is told the exit code.
//! - A packet that cannot be understood is answered with an error number, one that came damaged
//!   with a `-`. What is no packet at all (a browser's request) ends the session, as does one that
//!   cannot be understood while the guest runs, and standard error says so.
//! - A second gdb is hung up on as long as the first is there.
//! - `detach`, and a gdb that quits, is killed or loses its connection, leave no breakpoint,
//!   and the guest runs on. gdb may come again. `kill` ends the machine, as by SIGKILL.
//! - The time limit goes on while the guest stands still, and so does the guest's clock.
//! - Anyone who can connect has the guest in his hands: listen on localhost, or on a Unix
//!   socket in a directory of one's own.

mod describe;
mod listen;
mod monitor;
mod registers;
mod target;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::thread;

use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;

pub use listen::Address;

use crate::machine::debug::{Debugger, Event, Point, Reason, Watch};
use listen::{Listener, Peer};
use target::{Guest, tid};

/// Room for one packet; gdb reads no more memory at a time.
const PACKET: usize = 16 << 10;

/// The stub's socket, before there is a machine to debug.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    address: Address,
}

/// The stub at work.
#[derive(Debug)]
pub struct Session(thread::JoinHandle<()>);

impl Server {
    /// Listens.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let (listener, address) = Listener::bind(address)?;
        Ok(Self { listener, address })
    }

    /// Where gdb finds it.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves on a thread of its own until the machine has ended.
    pub fn start(self, debugger: Debugger) -> io::Result<Session> {
        let serve = move || {
            crate::machine::signals::block();
            if let Err(e) = serve(&self.listener, debugger) {
                log::warn!("gdb: no further gdb can connect: {e}");
            }
        };
        thread::Builder::new().name("gdb".to_owned()).spawn(serve).map(Session)
    }
}

impl Session {
    /// Waits until gdb has been told of the end; the machine has ended.
    pub fn finish(self) {
        let _ = self.0.join(); // its panic has been reported
    }
}

/// Serves one gdb after the other until the machine ends.
fn serve(listener: &Listener, debugger: Debugger) -> io::Result<()> {
    let mut guest = Guest::new(debugger);
    loop {
        let ([caller, _], news) = guest.debugger.wait([Some(listener), None], -1)?;
        if news && matches!(guest.debugger.event(), Some(Event::Ended(_))) {
            return Ok(());
        }
        let Some(peer) = (if caller { listener.accept()? } else { None }) else { continue };
        if talk(&mut guest, peer, listener) == After::TheEnd {
            return Ok(());
        }
    }
}

/// What comes after a gdb has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The guest runs on.
    TheNext,
    /// The machine has ended.
    TheEnd,
}

/// One gdb from its coming to its going.
fn talk(guest: &mut Guest, peer: Peer, listener: &Listener) -> After {
    guest.debugger.attach();
    let Some(Event::Stopped { cpu, .. }) = next_event(guest) else { return After::TheEnd };
    guest.start_over(cpu);
    let (input, packet) = (VecDeque::new(), Packet::default());
    let mut talk = Talk { guest, listener, input, packet, agreed: Vec::new() };
    match talk.run(peer) {
        Ok(Some(DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_))) => {
            return After::TheEnd;
        }
        Ok(Some(DisconnectReason::Kill)) => guest.debugger.kill(),
        Ok(Some(DisconnectReason::Disconnect) | None) => log::info!("gdb: detached"),
        Err(e) if e.kind() == io::ErrorKind::Other => {
            log::warn!("gdb: hung up, and the guest runs on: {e}");
        }
        Err(e) => log::info!("gdb: gone: {e}"),
    }
    // It may have gone while the guest ran.
    guest.debugger.pause();
    match next_event(guest) {
        Some(Event::Stopped { .. }) => guest.debugger.detach(),
        _ => return After::TheEnd,
    }
    After::TheNext
}

/// Waits for the next event, whatever gdb says; `None` when there is nothing to wait for.
fn next_event(guest: &mut Guest) -> Option<Event> {
    loop {
        if let Some(event) = guest.debugger.event() {
            return Some(event);
        }
        guest.debugger.wait([None, None], -1).ok()?;
    }
}

type Stub<'a, 'p> = GdbStubStateMachine<'a, Guest, &'p mut Peer>;

/// gdbstub's answer to a byte.
type Answer<'a, 'p> = Result<Stub<'a, 'p>, GdbStubError<Infallible, io::Error>>;

/// gdbstub's protocol, driven by what comes from gdb and from the machine.
struct Talk<'g> {
    guest: &'g mut Guest,
    /// Where others come, to be sent away.
    listener: &'g Listener,
    /// What has come and has not been taken yet.
    input: VecDeque<u8>,
    packet: Packet,
    /// What has been agreed with this gdb: a packet for each of [`AGREEMENTS`], the last one.
    agreed: Vec<(&'static str, Vec<u8>)>,
}

/// How the packets begin by which gdb and gdbstub agree on what later ones mean.
const AGREEMENTS: [&str; 4] = ["qSupported", "QStartNoAckMode", "Hg", "Hc"];

/// EINVAL: the answer to a packet that cannot be understood or answered.
const INVALID: u8 = 22;

/// The packet that comes, or came last, from its `$` to its checksum; empty between packets.
#[derive(Default)]
struct Packet {
    bytes: Vec<u8>,
}

impl Packet {
    fn push(&mut self, byte: u8) {
        if self.has_ended() {
            self.bytes.clear();
        }
        if byte == b'$' || !self.bytes.is_empty() {
            self.bytes.push(byte);
        }
    }

    /// Has its checksum come, two digits after the first `#`?
    fn has_ended(&self) -> bool {
        let end = self.bytes.len().wrapping_sub(3);
        self.bytes.get(end) == Some(&b'#') && !self.bytes[..end].contains(&b'#')
    }

    /// What stands between `$` and `#`.
    fn body(&self) -> &[u8] {
        let body = self.bytes.get(1..).unwrap_or_default();
        body.split(|byte| *byte == b'#').next().unwrap_or_default()
    }

    /// Is its checksum right?
    fn is_whole(&self) -> bool {
        let sum = self.body().iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        let digits = self.bytes.get(self.body().len() + 2..).and_then(|it| str::from_utf8(it).ok());
        digits.is_some_and(|it| u8::from_str_radix(it, 16) == Ok(sum))
    }
}

/// What comes next.
enum Next {
    Byte(u8),
    Event(Event),
    /// gdb has gone.
    Gone,
}

impl Talk<'_> {
    /// Until gdb goes; why it went, `None` when it did not say.
    fn run(&mut self, mut peer: Peer) -> io::Result<Option<DisconnectReason>> {
        loop {
            if let Some(gone) = self.until_refused(&mut peer)? {
                return Ok(gone);
            }
            let is_whole = self.packet.is_whole();
            log::info!("gdb: refused: {}", self.packet.body().escape_ascii());
            self.packet.bytes.clear();
            peer.refuse(is_whole, INVALID)?;
        }
    }

    /// A gdbstub that knows what has been agreed with gdb.
    fn stub<'p>(&mut self, peer: &'p mut Peer) -> io::Result<Stub<'static, 'p>> {
        let stub = GdbStub::builder(peer).packet_buffer_size(PACKET).build();
        let stub = stub.map_err(|e| io::Error::other(e.to_string()))?;
        let mut stub = stub.run_state_machine(self.guest).map_err(broken)?;
        for byte in self.agreed.iter().flat_map(|(_, packet)| packet) {
            let Stub::Idle(mut idle) = stub else { break };
            idle.borrow_conn().mute = true;
            stub = idle.incoming_data(self.guest, *byte).map_err(broken)?;
        }
        if let Stub::Idle(idle) = &mut stub {
            idle.borrow_conn().mute = false;
        }
        Ok(stub)
    }

    /// Until gdb goes, or (`None`) sends a packet that gdbstub ends with: it has not been
    /// answered, and gdb waits.
    fn until_refused(&mut self, peer: &mut Peer) -> io::Result<Option<Option<DisconnectReason>>> {
        let mut stub = self.stub(peer)?;
        let mut running = false;
        loop {
            stub = match stub {
                Stub::Idle(mut idle) => {
                    running = false;
                    match self.next(idle.borrow_conn())? {
                        Next::Byte(byte) => {
                            let answer = idle.incoming_data(self.guest, byte);
                            let Some(stub) = self.accept(answer)? else { return Ok(None) };
                            stub
                        }
                        Next::Event(Event::Stopped { .. }) => idle.into(),
                        // gdb does not listen now: its connection ends.
                        Next::Event(Event::Ended(_)) | Next::Gone => return Ok(Some(None)),
                    }
                }
                Stub::Running(mut run) => {
                    running = true;
                    for note in std::mem::take(&mut self.guest.notes) {
                        say(run.borrow_conn(), &note)?;
                    }
                    let next = self.guest.at_once.take().map(Next::Event);
                    match next.map_or_else(|| self.next(run.borrow_conn()), Ok)? {
                        Next::Byte(byte) => run.incoming_data(self.guest, byte).map_err(broken)?,
                        Next::Event(event) => {
                            self.explain(&event, run.borrow_conn())?;
                            run.report_stop(self.guest, stop(&event)).map_err(broken)?
                        }
                        Next::Gone => return Ok(Some(None)),
                    }
                }
                Stub::CtrlCInterrupt(interrupt) => {
                    // A guest that has stopped just now needs no further stop.
                    if running {
                        self.guest.debugger.pause();
                    }
                    let none = None::<MultiThreadStopReason<u64>>;
                    interrupt.interrupt_handled(self.guest, none).map_err(broken)?
                }
                Stub::Disconnected(mut gone) => {
                    if gone.get_reason() == DisconnectReason::Kill {
                        gone.borrow_conn().send("OK")?; // which gdb waits for, and gdbstub leaves out
                    }
                    return Ok(Some(Some(gone.get_reason())));
                }
            }
        }
    }

    /// gdbstub as it goes on after a byte; `None` where it does not, but gdb can be answered all
    /// the same: the byte ended a packet.
    fn accept<'a, 'p>(&mut self, answer: Answer<'a, 'p>) -> io::Result<Option<Stub<'a, 'p>>> {
        match answer {
            Ok(stub) => {
                self.agree();
                Ok(Some(stub))
            }
            Err(e) => {
                let e = broken(e);
                let can_stay = self.packet.has_ended() && e.kind() == io::ErrorKind::Other;
                if can_stay { Ok(None) } else { Err(e) }
            }
        }
    }

    /// Keeps the packet that was accepted, where it is an agreement.
    fn agree(&mut self) {
        let body = self.packet.body();
        let Some(begins) = AGREEMENTS.iter().find(|it| body.starts_with(it.as_bytes())) else {
            return;
        };
        if self.packet.has_ended() {
            self.agreed.retain(|(other, _)| other != begins);
            self.agreed.push((begins, self.packet.bytes.clone()));
        }
    }

    fn next(&mut self, peer: &mut Peer) -> io::Result<Next> {
        loop {
            if let Some(byte) = self.input.pop_front() {
                self.packet.push(byte);
                if self.packet.bytes.len() > PACKET {
                    return Err(io::Error::other("a packet without an end"));
                }
                return Ok(Next::Byte(byte));
            }
            let peers: [Option<&dyn AsFd>; 2] = [Some(peer), Some(self.listener)];
            let ([input, caller], news) = self.guest.debugger.wait(peers, -1)?;
            if news && let Some(event) = self.guest.debugger.event() {
                return Ok(Next::Event(event));
            }
            if input {
                let mut buffer = [0; 4096];
                match peer.read(&mut buffer)? {
                    0 => return Ok(Next::Gone),
                    n => self.input.extend(&buffer[..n]),
                }
            } else if caller {
                self.send_away(peer)?;
            }
        }
    }

    /// Hangs up on a second gdb, unless the first has gone meanwhile: then it is the next.
    fn send_away(&self, peer: &Peer) -> io::Result<()> {
        let ([has_gone, _], _) = self.guest.debugger.wait([Some(peer), None], 0)?;
        if !has_gone && self.listener.accept()?.is_some() {
            log::info!("gdb: another gdb has come, and was sent away");
        }
        Ok(())
    }

    /// Says on gdb's console what a stop reply has no word for.
    fn explain(&mut self, event: &Event, peer: &mut Peer) -> io::Result<()> {
        let Event::Stopped { cpu, reason } = event else { return Ok(()) };
        self.guest.cpu = *cpu;
        describe::reason(reason).map_or(Ok(()), |text| say(peer, &text))
    }
}

/// Shows text on gdb's console, which takes it while the guest runs.
fn say(peer: &mut Peer, text: &str) -> io::Result<()> {
    let line = format!("ringfence: {text}\n");
    let hex: String = line.bytes().map(|byte| format!("{byte:02x}")).collect();
    peer.send(&format!("O{hex}"))
}

/// What gdbstub cannot go on with: an error of the connection as it is, any other as
/// [`io::ErrorKind::Other`].
fn broken(e: GdbStubError<Infallible, io::Error>) -> io::Error {
    let text = e.to_string();
    e.into_connection_error().map_or_else(|| io::Error::other(text), |(e, _)| e)
}

/// A stop in gdb's words.
fn stop(event: &Event) -> MultiThreadStopReason<u64> {
    let (cpu, reason) = match event {
        Event::Ended(verdict) => return MultiThreadStopReason::Exited(verdict.exit_code()),
        Event::Stopped { cpu, reason } => (*cpu, reason),
    };
    let tid = tid(cpu);
    let signal = match reason {
        // A SIGTRAP would be the end of a step that gdb hides, and it would go on.
        Reason::Asked | Reason::Started => Signal::SIGINT,
        Reason::Stepped => Signal::SIGTRAP,
        Reason::Died(_) => Signal::SIGABRT,
        // A SIGTRAP would have gdb step again, and again.
        Reason::Refused(_) => Signal::EXC_EMULATION,
        Reason::Breakpoint(Point::Software) => return MultiThreadStopReason::SwBreak(tid),
        Reason::Breakpoint(_) => return MultiThreadStopReason::HwBreak(tid),
        Reason::Watchpoint { watch, address } => {
            let kind = match watch {
                Watch::Write => WatchKind::Write,
                Watch::Read => WatchKind::Read,
                Watch::Access => WatchKind::ReadWrite,
            };
            return MultiThreadStopReason::Watch { tid, kind, addr: *address };
        }
    };
    MultiThreadStopReason::SignalWithThread { tid, signal }
}
