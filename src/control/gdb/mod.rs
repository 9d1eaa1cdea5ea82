//! The gdb stub: one gdb at a time, on a thread of its own, over a socket.
//!
//! - Every vCPU is a thread of gdb's; all stop together.
//! - The register file is that of x86-64 in every mode. RIP is shown as a linear address;
//!   gdb disassembles as 64-bit code whatever the mode, so in 16- and 32-bit code the bytes
//!   (`x/8xb $rip`) are right and the mnemonics may not be.
//! - `break` patches INT3 into the guest's memory, by the page tables of the vCPU that
//!   stopped. Where the address is not mapped yet, or this KVM does not give INT3 to
//!   debuggers, it takes one of the four debug registers instead.
//! - A guest that dies stops before its end, so that it can be looked at; when it is let go
//!   the machine ends, with the guest's verdict as ever. A guest that ends by itself is
//!   gone: gdb is told the exit code.
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
use std::io;
use std::thread;

use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
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
        let (caller, news) = guest.debugger.wait(Some(listener), -1)?;
        if news && matches!(guest.debugger.event(), Some(Event::Ended(_))) {
            return Ok(());
        }
        let Some(peer) = (if caller { listener.accept()? } else { None }) else { continue };
        if talk(&mut guest, peer) == After::TheEnd {
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
fn talk(guest: &mut Guest, peer: Peer) -> After {
    guest.debugger.attach();
    let Some(Event::Stopped { cpu, .. }) = next_event(guest) else { return After::TheEnd };
    (guest.cpu, guest.space, guest.at_once) = (cpu, Default::default(), None);
    let mut talk = Talk { guest, input: VecDeque::new() };
    match talk.run(peer) {
        Ok(Some(DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_))) => {
            return After::TheEnd;
        }
        Ok(Some(DisconnectReason::Kill)) => guest.debugger.kill(),
        Ok(Some(DisconnectReason::Disconnect) | None) => log::info!("gdb: detached"),
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
        guest.debugger.wait(None, -1).ok()?;
    }
}

type Stub<'a> = GdbStubStateMachine<'a, Guest, Peer>;

/// gdbstub's protocol, driven by what comes from gdb and from the machine.
struct Talk<'g> {
    guest: &'g mut Guest,
    /// What has come and has not been taken yet.
    input: VecDeque<u8>,
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
    fn run(&mut self, peer: Peer) -> io::Result<Option<DisconnectReason>> {
        let stub = GdbStub::builder(peer).packet_buffer_size(PACKET).build();
        let mut stub = stub.map_err(broken)?.run_state_machine(self.guest).map_err(broken)?;
        let mut running = false;
        loop {
            stub = match stub {
                Stub::Idle(mut idle) => {
                    running = false;
                    match self.next(idle.borrow_conn())? {
                        Next::Byte(byte) => idle.incoming_data(self.guest, byte).map_err(broken)?,
                        Next::Event(Event::Stopped { .. }) => idle.into(),
                        // gdb does not listen now: its connection ends.
                        Next::Event(Event::Ended(_)) | Next::Gone => return Ok(None),
                    }
                }
                Stub::Running(mut run) => {
                    running = true;
                    let next = self.guest.at_once.take().map(Next::Event);
                    match next.map_or_else(|| self.next(run.borrow_conn()), Ok)? {
                        Next::Byte(byte) => run.incoming_data(self.guest, byte).map_err(broken)?,
                        Next::Event(event) => {
                            self.explain(&event, run.borrow_conn())?;
                            run.report_stop(self.guest, stop(&event)).map_err(broken)?
                        }
                        Next::Gone => return Ok(None),
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
                    return Ok(Some(gone.get_reason()));
                }
            }
        }
    }

    fn next(&mut self, peer: &mut Peer) -> io::Result<Next> {
        loop {
            if let Some(byte) = self.input.pop_front() {
                return Ok(Next::Byte(byte));
            }
            let (input, news) = self.guest.debugger.wait(Some(peer), -1)?;
            if news && let Some(event) = self.guest.debugger.event() {
                return Ok(Next::Event(event));
            }
            if input {
                let mut buffer = [0; 4096];
                match peer.read(&mut buffer)? {
                    0 => return Ok(Next::Gone),
                    n => self.input.extend(&buffer[..n]),
                }
            }
        }
    }

    /// Says on gdb's console what a stop reply has no word for.
    fn explain(&mut self, event: &Event, peer: &mut Peer) -> io::Result<()> {
        let Event::Stopped { cpu, reason } = event else { return Ok(()) };
        self.guest.cpu = *cpu;
        match describe::reason(reason) {
            Some(text) => {
                let hex: String =
                    format!("ringfence: {text}\n").bytes().map(|b| format!("{b:02x}")).collect();
                peer.send(&format!("O{hex}"))
            }
            None => Ok(()),
        }
    }
}

/// A session that gdbstub cannot go on with.
fn broken(e: impl std::fmt::Display) -> io::Error {
    io::Error::other(e.to_string())
}

/// A stop in gdb's words.
fn stop(event: &Event) -> MultiThreadStopReason<u64> {
    let (cpu, reason) = match event {
        Event::Ended(verdict) => return MultiThreadStopReason::Exited(verdict.exit_code()),
        Event::Stopped { cpu, reason } => (*cpu, reason),
    };
    let tid = tid(cpu);
    let signal = match reason {
        Reason::Asked => Signal::SIGINT,
        Reason::Started | Reason::Stepped => Signal::SIGTRAP,
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
