//! How a library's user describes a machine.

use std::path::PathBuf;
use std::time::Duration;

use super::files::Files;
use super::{Error, Input, Io, Machine, Output};
use crate::boot::Protocol;
use crate::config::{Config, ModuleFile, OnHalt, OnReset, Strict};
use crate::irq::Irqchip;
use crate::x86::Mode;

/// A machine under description; [`Machine::builder`] begins one.
#[must_use = "nothing is built before build()"]
pub struct Builder {
    config: Config,
    image: Option<Vec<u8>>,
    /// Modules that are no files, each with its string.
    modules: Vec<(Vec<u8>, String)>,
    io: Io,
}

impl Builder {
    pub(super) fn new(image: PathBuf) -> Self {
        Self { config: Config::new(image), image: None, modules: Vec::new(), io: Io::default() }
    }

    /// Replaces the whole description, image and all.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The image's bytes, for one that is in memory already; the path is then only its name.
    pub fn image_bytes(mut self, image: Vec<u8>) -> Self {
        self.image = Some(image);
        self
    }

    /// RAM in bytes; 128 MiB where it is not set.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.config.memory = bytes;
        self
    }

    /// Number of vCPUs.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.config.cpus = cpus;
        self
    }

    /// The guest's command line.
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.config.cmdline = Some(cmdline.into());
        self
    }

    /// Adds a module with its arguments.
    pub fn module(mut self, path: impl Into<PathBuf>, args: impl Into<String>) -> Self {
        self.config.modules.push(ModuleFile { path: path.into(), args: args.into() });
        self
    }

    /// Adds a module that is in memory already, behind those that are files; `string` is what a
    /// protocol hands over as its name and arguments.
    pub fn module_bytes(mut self, string: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        self.modules.push((bytes.into(), string.into()));
        self
    }

    /// Initial RAM disk.
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.initrd = Some(path.into());
        self
    }

    /// Forces a boot protocol.
    pub fn boot(mut self, protocol: Protocol) -> Self {
        self.config.boot = Some(protocol);
        self
    }

    /// Mode in which a flat binary is entered.
    pub fn entry(mut self, mode: Mode) -> Self {
        self.config.entry = Some(mode);
        self
    }

    /// Where a flat binary goes.
    pub fn load_address(mut self, address: u64) -> Self {
        self.config.load_address = Some(address);
        self
    }

    /// Interrupt controllers.
    pub fn irqchip(mut self, irqchip: Irqchip) -> Self {
        self.config.irqchip = Some(irqchip);
        self
    }

    /// Time limit, from [`Self::build`] on.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.config.timeout = Some(limit);
        self
    }

    /// What a guest that halts for ever is.
    pub fn on_halt(mut self, what: OnHalt) -> Self {
        self.config.on_halt = what;
        self
    }

    /// What happens to a guest that asks for a reset.
    pub fn on_reset(mut self, what: OnReset) -> Self {
        self.config.on_reset = what;
        self
    }

    /// Rules of strict mode.
    pub fn strict(mut self, rules: Strict) -> Self {
        self.config.strict = rules;
        self
    }

    /// What the guest reads on its serial line.
    pub fn serial_input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.io.input = Input::Bytes(bytes.into());
        self
    }

    /// Has the report tell what the exits went into.
    pub fn stats(mut self) -> Self {
        self.io.observe.stats = true;
        self
    }

    /// Samples where the guest's time goes, for [`Machine::profile`].
    pub fn profile(mut self) -> Self {
        self.io.observe.profile = true;
        self
    }

    /// Sends console output somewhere else than to [`Machine::serial`].
    pub fn output(mut self, output: Output) -> Self {
        self.io.output = output;
        self
    }

    /// Builds the machine.
    ///
    /// # Errors
    /// Each says whose fault it is: see [`Error::refusal`].
    pub fn build(self) -> Result<Machine, Error> {
        let mut files = match self.image {
            Some(image) => Files::with_image(&self.config, image)?,
            None => Files::read(&self.config)?,
        };
        files.add_modules(self.modules);
        Machine::with_files(self.config, files, self.io)
    }
}
