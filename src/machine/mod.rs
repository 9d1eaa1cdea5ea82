//! A machine: memory, image, KVM, devices and vCPUs put together, run, and reported on.
//!
//! Called by the command line, the tests and whoever uses ringfence as a library; knows
//! everything below, no command line.

mod ask;
mod autopsy;
mod build;
mod builder;
mod checkpoint;
mod core;
pub mod debug;
mod error;
mod files;
mod guards;
mod input;
mod instruction;
mod linux;
mod names;
mod observe;
mod output;
mod plan;
mod platform;
mod poll;
mod present;
pub mod remote;
pub mod report;
mod second_run;
pub mod signals;
mod strict;
mod suspend;
mod whole;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, Instant};

pub use crate::inspect::coverage::{Error as CoverageError, Profile as Coverage};
pub use builder::Builder;
pub use checkpoint::{Checkpoint, Reached};
pub use error::{Error, chain};
pub use files::{has_mailbox, is_image};
pub use input::Keystroke;
pub use observe::{Observe, TraceOutput};
pub use plan::{Plan, plan};
pub use platform::{DeviceEntry, entries as devices};
pub use report::Report;
pub use whole::{Location, check_writable, is_replaced, location, write_whole};

use crate::boot::{Loaded, Protocol};
use crate::config::{Config, OnHalt, OnReset};
use crate::devices::Console;
use crate::devices::console::Position;
use crate::inspect::Autopsy;
use crate::inspect::watch::Instruments;
use crate::vcpu::{self, Control, Counts, Parking, Record};
use crate::verdict::{Death, Success, Verdict};
use autopsy::Evidence;
use build::{Incarnation, console, incarnate, load};
use files::Files;
use input::Pump;
use present::Present;

/// Console output that a machine keeps for [`Machine::serial`], in bytes.
const CAPTURE: usize = 16 << 20;

/// Where a guest's console output goes, beside [`Machine::serial`].
#[derive(Default)]
pub enum Output {
    /// Only there.
    #[default]
    Captured,
    /// To this file, pipe or terminal; the name is for errors.
    File(String, File),
    /// Both.
    Both(String, File),
}

/// Where a guest's serial input comes from.
#[derive(Default)]
pub enum Input {
    /// Nowhere.
    #[default]
    None,
    /// From memory.
    Bytes(Vec<u8>),
    /// From this file, pipe or terminal. With `keys` every byte is asked about, and it is
    /// read from the start; without, when the guest first looks for input.
    File {
        /// What is read.
        file: File,
        /// What a byte does.
        keys: Option<Box<dyn FnMut(u8) -> Keystroke + Send>>,
    },
}

/// A machine's connections to the host.
#[derive(Default)]
pub struct Io {
    /// Console output.
    pub output: Output,
    /// Serial input.
    pub input: Input,
    /// Where [`signals::catch`] leaves the signal that ends the machine.
    pub signal: Option<&'static AtomicU8>,
    /// What of the run is watched.
    pub observe: Observe,
}

/// A VM with its image in memory, ready to run.
///
/// ```no_run
/// use std::time::Duration;
/// use ringfence::{Machine, Verdict};
///
/// let mut machine = Machine::builder("target/kernel.elf")
///     .memory(64 << 20)
///     .timeout(Duration::from_secs(10))
///     .build()?;
/// let verdict = machine.run();
/// assert!(verdict.is_success(), "{verdict}\n{}", machine.serial_text());
/// # Ok::<(), ringfence::machine::Error>(())
/// ```
pub struct Machine {
    config: Config,
    files: Files,
    control: Arc<Control>,
    console: Arc<Console>,
    pump: Arc<Pump>,
    incarnation: Incarnation,
    instruments: Arc<Instruments>,
    loaded: Loaded,
    began: Instant,
    counts: Counts,
    restarts: u64,
    ended: Option<(Verdict, Duration)>,
    /// The test that the guest finds in its mailbox.
    test: Vec<u8>,
    /// Where the console stood at the last checkpoint or reset.
    since: Option<Position>,
    /// What others see of it while it runs, if there are any.
    present: Option<Arc<Present>>,
    /// Is there a debugger?
    debugged: bool,
    evidence: Option<Evidence>,
    autopsy: Option<Autopsy>,
}

impl Machine {
    /// Begins the description of a machine; `@NAME` is a guest that ringfence carries.
    pub fn builder(image: impl Into<std::path::PathBuf>) -> Builder {
        Builder::new(image.into())
    }

    /// Builds a machine: reads the files, loads the image, makes the VM. The time limit
    /// begins here.
    pub fn new(config: Config, io: Io) -> Result<Self, Error> {
        let files = Files::read(&config)?;
        Self::with_files(config, files, io)
    }

    fn with_files(config: Config, files: Files, io: Io) -> Result<Self, Error> {
        config.check()?;
        let began = Instant::now();
        let deadline = config.timeout.and_then(|limit| Some((began.checked_add(limit)?, limit)));
        let control = Control::new(deadline, io.signal);
        let console = console(io.output, &control);
        let pump = Pump::new(io.input, control.clone());
        let memory = || load(&config, &files);
        let (loaded, mut incarnation) = incarnate(&config, memory, &control, &console, &pump)?;
        strict::warn(&config, &loaded);
        if loaded.protocol == Protocol::Linux {
            control.set_watch(linux::watch(console.clone()));
        }
        let instruments =
            io.observe.instruments(|| names::functions(&config, &files.image, &loaded), &control);
        incarnation.watch(&instruments);
        Ok(Self {
            config,
            files,
            control,
            console,
            pump,
            incarnation,
            instruments: Arc::new(instruments),
            loaded,
            began,
            counts: Counts::default(),
            restarts: 0,
            ended: None,
            test: Vec::new(),
            since: None,
            present: None,
            debugged: false,
            evidence: None,
            autopsy: None,
        })
    }

    /// Runs the guest to its end. A second call gives the same verdict again.
    pub fn run(&mut self) -> Verdict {
        loop {
            if let Reached::End(verdict) = self.advance() {
                return verdict;
            }
        }
    }

    /// Runs the guest to its end, or up to where it is ready, if that is awaited.
    fn advance(&mut self) -> Reached {
        loop {
            if let Some((verdict, _)) = &self.ended {
                return Reached::End(verdict.clone());
            }
            self.counts.add(&vcpu::run_all(&mut self.incarnation.loops, &self.control));
            self.share_again();
            let verdict = self.control.verdict();
            if verdict.is_none() && self.control.is_ready() {
                return Reached::Ready;
            }
            // Before the caller's words on resets: this one is the debugger's.
            let by_debugger = self.control.parking().is_some_and(Parking::take_reset)
                && matches!(verdict, Some(Verdict::Died { .. }));
            let verdict = self.judge(verdict);
            let restarts = self.config.on_reset == OnReset::Restart && is_reset(&verdict);
            let begun = if restarts || by_debugger {
                self.restart()
            } else if let Some(wake) = self.wake_of(&verdict) {
                self.sleep(wake)
            } else {
                self.end(verdict);
                Ok(())
            };
            if let Err(e) = begun {
                self.end(e.verdict());
            }
        }
    }

    fn end(&mut self, verdict: Verdict) {
        if let Some(parking) = self.control.parking() {
            parking.end(verdict.clone());
        }
        self.ended = Some((verdict, self.began.elapsed()));
        self.pump.end();
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.control.rearm();
        self.console.starts_again();
        self.restarts += 1;
        let Self { config, files, control, console, pump, .. } = self;
        let (_, incarnation) = incarnate(config, || load(config, files), control, console, pump)?;
        self.go_on_as(incarnation);
        Ok(())
    }

    fn go_on_as(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.incarnation.watch(&self.instruments);
        self.incarnation.mailbox.set_test(&self.test);
        self.share_again();
    }

    /// What the caller said about halts and resets, and what Linux said of its own end.
    fn judge(&self, verdict: Option<Verdict>) -> Verdict {
        match verdict.unwrap_or_else(nothing_ran) {
            verdict if is_reset(&verdict) && self.loaded.protocol == Protocol::Linux => {
                let said = self.console.last_words();
                let panic = linux::panic_in(&String::from_utf8_lossy(&said));
                panic.unwrap_or_else(|| self.judge_reset(verdict))
            }
            verdict if is_reset(&verdict) => self.judge_reset(verdict),
            Verdict::Died { cause: Death::Halted, .. }
                if self.config.on_halt == OnHalt::Success =>
            {
                Verdict::Success(Success::Halted)
            }
            verdict => {
                let names = || names::functions(&self.config, &self.files.image, &self.loaded);
                strict::name_instruction(verdict, &self.incarnation, names)
            }
        }
    }

    fn judge_reset(&self, verdict: Verdict) -> Verdict {
        match self.config.on_reset {
            OnReset::Success => Verdict::Success(Success::Reset),
            _ => verdict,
        }
    }

    /// What the guest wrote to its serial line and debug console, the first 16 MiB.
    pub fn serial(&self) -> Vec<u8> {
        self.console.captured()
    }

    /// The same as text, invalid UTF-8 replaced.
    pub fn serial_text(&self) -> String {
        String::from_utf8_lossy(&self.serial()).into_owned()
    }

    /// Was the whole trace written? One that could not be ends the machine, but its last lines are
    /// written when the guest has ended.
    ///
    /// # Errors
    /// It was not, and the verdict is another.
    pub fn whole_trace(&self) -> Result<(), Error> {
        let told = matches!(self.ended, Some((Verdict::Refused { .. }, _)));
        match self.instruments.trace_failure().filter(|_| !told) {
            Some((name, source)) => {
                Err(Error::Host { doing: format!("write the trace to {name}"), source })
            }
            None => Ok(()),
        }
    }

    /// The profile, where one was asked for, as folded lines (`vcpu0;outer;inner 42`).
    pub fn profile(&self) -> Option<String> {
        self.instruments.folded()
    }

    /// The counters of an image that was compiled for coverage, as they stand in memory now.
    ///
    /// # Errors
    /// Where the image has none, or its compiler's format is unknown.
    pub fn coverage(&self) -> Result<Coverage, Error> {
        let read = Coverage::read(&self.files.image, &self.incarnation.memory);
        let image = self.config.image.display().to_string();
        read.map_err(|source| Error::Coverage { image, source })
    }

    /// The last exits of vCPU `id`, at most `most` of them, the oldest first.
    pub fn last_exits(&self, id: u32, most: usize) -> Vec<Record> {
        let it = self.incarnation.loops.get(id as usize);
        it.map_or_else(Vec::new, |it| it.recorder.tail(most))
    }

    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.console.tail()).into_owned()
    }

    /// The record of the run, for machines; with the autopsy, where [`Self::autopsy`] has
    /// been asked for.
    pub fn report(&self) -> Report {
        let (verdict, wall) =
            self.ended.clone().unwrap_or_else(|| (nothing_ran(), self.began.elapsed()));
        let mut report = Report::new(&verdict, Some(&self.config), wall);
        report.count(&self.counts);
        report.restarts = self.restarts;
        report.image.protocol = Some(self.loaded.protocol.name().to_owned());
        report.image.description = Some(self.loaded.description.clone());
        report.autopsy = self.autopsy.clone();
        if self.instruments.counts_from_start() {
            let kernel = || self.incarnation.kernel_stats();
            report.stats = self.instruments.statistics(kernel, platform::port_name);
        }
        report.serial = report::SerialReport { bytes: self.console.total(), tail: self.tail() };
        report
    }
}

fn is_reset(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Died { cause: Death::Reset, .. })
}

/// Every vCPU came back and none said why; cannot happen, and must not look like success.
fn nothing_ran() -> Verdict {
    Verdict::Refused {
        refusal: crate::verdict::Refusal::Bug,
        message: "the machine has no verdict; this is a bug in ringfence".to_owned(),
    }
}
