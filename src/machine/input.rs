//! Serial input: a thread that carries bytes from the host to the serial port.
//!
//! It is started when it is needed: at once for a terminal (whose escape must always
//! work), else when the guest first looks for input. Most guests never do, and a thread
//! costs start-up time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::Input;
use super::poll::poll;
use crate::devices::SerialInput;
use crate::vcpu::{self, Control};
use crate::verdict::{Refusal, StopLine, Verdict};

/// What a byte of the input does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keystroke {
    /// It goes to the guest.
    Guest(u8),
    /// It is swallowed.
    Nothing,
    /// It ends the machine.
    Stop(Verdict),
}

/// Bytes that may wait for the guest. Beyond them a pipe is not read on; a terminal is,
/// because an escape may come, and further keys are dropped.
const WAITING: usize = 4096;
/// Bytes of what the guest got that are kept for a second run.
const KEPT: usize = 64 << 10;
/// How long to wait for room in the serial port before looking at the host again.
const PATIENCE: Duration = Duration::from_millis(20);

type Keys = Box<dyn FnMut(u8) -> Keystroke + Send>;

/// The carrier, and what starts and ends it.
pub(super) struct Pump {
    /// What is to be carried; gone once the thread has it.
    input: Mutex<Input>,
    /// The port of the machine's present incarnation.
    port: Mutex<Option<SerialInput>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
    /// What the port has taken, for a second run.
    taken: Mutex<Vec<u8>>,
    /// Written to once, at the end.
    end: Mutex<Option<Arc<EventFd>>>,
    control: Arc<Control>,
}

impl Pump {
    pub(super) fn new(input: Input, control: Arc<Control>) -> Arc<Self> {
        Arc::new(Self {
            input: Mutex::new(input),
            port: Mutex::new(None),
            thread: Mutex::new(None),
            taken: Mutex::new(Vec::new()),
            end: Mutex::new(None),
            control,
        })
    }

    /// Carries to this port from now on.
    pub(super) fn attach(self: &Arc<Self>, port: SerialInput) {
        *lock(&self.port) = Some(port);
        if matches!(&*lock(&self.input), Input::File { keys: Some(_), .. }) {
            self.start();
        }
    }

    /// What the serial port calls when the guest first looks for input.
    pub(super) fn wanted(self: &Arc<Self>) -> Box<dyn FnOnce() + Send> {
        let pump = self.clone();
        Box::new(move || pump.start())
    }

    fn start(self: &Arc<Self>) {
        let input = std::mem::take(&mut *lock(&self.input));
        if matches!(input, Input::None) {
            return;
        }
        if let Err(e) = self.spawn(input) {
            let message = format!("the host refused a thread for the serial input: {e}");
            self.control.stop(Verdict::Refused { refusal: Refusal::Host, message });
        }
    }

    fn spawn(self: &Arc<Self>, input: Input) -> io::Result<()> {
        let end = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        *lock(&self.end) = Some(end.clone());
        let mut carrier = Carrier { pump: self.clone(), end, waiting: VecDeque::new() };
        let thread = thread::Builder::new().name("serial-in".to_owned()).spawn(move || {
            vcpu::block_process_signals();
            match input {
                Input::None => {}
                Input::Bytes(bytes) => carrier.carry_bytes(bytes),
                Input::File { file, keys } => carrier.carry_file(file, keys),
            }
        })?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// What the guest's port has taken, the first 64 KiB.
    pub(super) fn taken(&self) -> Vec<u8> {
        lock(&self.taken).clone()
    }

    /// Lets the serial port take input again, after [`Self::end`].
    pub(super) fn reopen(&self) {
        if let Some(port) = &*lock(&self.port) {
            port.reopen();
        }
    }

    /// Ends the thread and waits for it.
    pub(super) fn end(&self) {
        if let Some(end) = lock(&self.end).take() {
            let _ = end.write(1); // fails only when it was written to 2^64 - 2 times
        }
        if let Some(port) = &*lock(&self.port) {
            port.close();
        }
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join(); // its panic has been reported
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread's own state.
struct Carrier {
    pump: Arc<Pump>,
    end: Arc<EventFd>,
    waiting: VecDeque<u8>,
}

impl Carrier {
    fn carry_bytes(&mut self, bytes: Vec<u8>) {
        self.waiting = bytes.into();
        while !self.waiting.is_empty() && !self.ended(0) {
            self.push();
        }
    }

    fn carry_file(&mut self, mut file: File, mut keys: Option<Keys>) {
        let mut buffer = [0; 256];
        let mut open = true;
        while open || !self.waiting.is_empty() {
            // With something waiting for room in the port the host is looked at in passing.
            let patience = if self.waiting.is_empty() { -1 } else { 0 };
            let read_on = open && (keys.is_some() || self.waiting.len() < WAITING);
            match self.poll(read_on.then_some(&file), patience) {
                Ready::End => return,
                Ready::Input => match file.read(&mut buffer) {
                    Ok(0) => open = false,
                    Ok(n) => self.take(&buffer[..n], keys.as_mut()),
                    Err(e) if is_passing(&e) => {}
                    // A terminal that has gone: there is no more input.
                    Err(_) => open = false,
                },
                Ready::Nothing => {}
            }
            self.push();
        }
    }

    fn take(&mut self, bytes: &[u8], keys: Option<&mut Keys>) {
        let Some(keys) = keys else { return self.waiting.extend(bytes) };
        for byte in bytes {
            match keys(*byte) {
                Keystroke::Guest(key) if self.waiting.len() < WAITING => {
                    self.waiting.push_back(key);
                }
                Keystroke::Guest(_) | Keystroke::Nothing => {}
                Keystroke::Stop(verdict) => self.pump.control.order(verdict),
            }
        }
    }

    /// Gives the port what it has room for, and waits a moment where it has none.
    fn push(&mut self) {
        let Some(port) = lock(&self.pump.port).clone() else { return };
        let taken = port.push(self.waiting.make_contiguous());
        let mut kept = lock(&self.pump.taken);
        let room = KEPT.saturating_sub(kept.len());
        kept.extend(self.waiting.drain(..taken).take(room));
        drop(kept);
        if !self.waiting.is_empty() && taken == 0 {
            port.wait_for_room(PATIENCE);
        }
    }

    fn ended(&self, patience: libc::c_int) -> bool {
        matches!(self.poll(None, patience), Ready::End)
    }

    fn poll(&self, file: Option<&File>, patience: libc::c_int) -> Ready {
        let file = file.map_or(-1, AsRawFd::as_raw_fd);
        match poll([(self.end.as_raw_fd(), libc::POLLIN), (file, libc::POLLIN)], patience) {
            Ok([0, 0]) => Ready::Nothing,
            Ok([0, _]) => Ready::Input,
            // Without a way to wait there is no more input.
            Ok(_) | Err(_) => Ready::End,
        }
    }
}

enum Ready {
    End,
    Input,
    Nothing,
}

fn is_passing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}
