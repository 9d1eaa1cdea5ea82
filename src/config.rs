//! A machine's description: [`Description`] as it was written (a file, the command line),
//! [`Config`] resolved and checked. Plain data: no file descriptor, no system call.

mod autopsy;
mod strict;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use autopsy::{AutopsyLevel, SymbolFile};

use crate::boot::Protocol;
use crate::irq::Irqchip;
use crate::mem::PAGE_SIZE;
use crate::x86::{Mode, Model};
pub use strict::Strict;

/// RAM of a machine that does not say how much it wants.
pub const DEFAULT_MEMORY: u64 = 128 << 20;
/// What every memory map needs: RAM up to 1 MiB.
pub const MIN_MEMORY: u64 = 1 << 20;
/// More vCPUs than any KVM gives one VM: the local APIC's IDs end there.
pub const MAX_CPUS: u32 = 4096;

/// What is wrong with a description.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not what it should be.
    #[error("the machine description {path} is not understood: {reason}")]
    Syntax {
        /// The file.
        path: String,
        /// The parser's words, with the line.
        reason: String,
    },
    /// No image was named.
    #[error("no image: name one on the command line, or as `image` in the machine description")]
    NoImage,
    /// A value is out of range, or two of them do not go together.
    #[error("bad value for {what}: {reason}")]
    Value {
        /// The option.
        what: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// Where the serial line goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SerialTarget {
    /// Standard input and output.
    Stdio,
    /// Output to this file; no input.
    File(PathBuf),
    /// Nowhere.
    Null,
}

impl std::str::FromStr for SerialTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(format!("{text:?} is none of stdio, file:PATH, null")),
        }
    }
}

/// What a guest that halts for ever is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnHalt {
    /// Dead.
    #[default]
    Fail,
    /// Done, with success.
    Success,
}

/// What happens to a guest that asks for a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// It is dead.
    #[default]
    Fail,
    /// It starts again from its image.
    Restart,
    /// It is done, with success.
    Success,
}

/// A file that goes to the guest beside the image, with the arguments it is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModuleFile {
    /// The file; `@NAME` is a guest that ringfence carries.
    pub path: PathBuf,
    /// Its arguments.
    pub args: String,
}

impl std::str::FromStr for ModuleFile {
    type Err = String;

    /// `FILE[,args]`
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, args) = text.split_once(',').unwrap_or((text, ""));
        if path.is_empty() {
            return Err("a module needs a file: FILE[,args]".to_owned());
        }
        Ok(Self { path: path.into(), args: args.to_owned() })
    }
}

/// A machine as it was described: everything may be left out. The fields are the options of
/// `ringfence run`, and what a machine description file (TOML or JSON) may contain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Description {
    /// The image; `@NAME` is a guest that ringfence carries.
    pub image: Option<PathBuf>,
    /// RAM: a number with K, M or G.
    pub memory: Option<String>,
    /// Number of vCPUs.
    pub cpus: Option<u32>,
    /// Processor model: `[MODEL][,vendor=NAME][,phys-bits=N][,+FEATURE][,-FEATURE]`.
    pub cpu: Option<String>,
    /// Command line.
    pub cmdline: Option<String>,
    /// Modules: `FILE[,args]`.
    pub modules: Option<Vec<String>>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Boot protocol.
    pub boot: Option<Protocol>,
    /// Mode in which a flat binary is entered.
    pub entry: Option<Mode>,
    /// Where a flat binary goes: a number, 0x for hexadecimal.
    pub load_address: Option<String>,
    /// Interrupt controllers.
    pub irqchip: Option<Irqchip>,
    /// stdio, file:PATH, null.
    pub serial: Option<String>,
    /// Time limit: 500ms, 10s, 2m.
    pub timeout: Option<String>,
    /// What a guest that halts for ever is.
    pub on_halt: Option<OnHalt>,
    /// What happens to a guest that asks for a reset.
    pub on_reset: Option<OnReset>,
    /// Rules of strict mode: io,mmio,msr,text,null, or all.
    pub strict: Option<String>,
    /// KVM's device node.
    pub kvm: Option<PathBuf>,
    /// How far an autopsy goes.
    pub autopsy: Option<AutopsyLevel>,
    /// Files with symbols: `FILE[,OFFSET]`.
    pub symbols: Option<Vec<String>>,
    /// Where a dead guest's memory goes.
    pub core: Option<PathBuf>,
}

impl Description {
    /// Reads a description: JSON where the file's name ends in `.json`, else TOML. Paths in
    /// it are relative to the file's directory.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let is_json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let parsed = if is_json {
            serde_json::from_str(text).map_err(|e| e.to_string())
        } else {
            toml::from_str(text).map_err(|e| one_line(&e, text))
        };
        let described: Self = parsed.map_err(|reason| Error::Syntax {
            path: path.display().to_string(),
            reason: reason.trim_end().to_owned(),
        })?;
        Ok(described.relative_to(path.parent().unwrap_or(Path::new(""))))
    }

    /// The same with its paths relative to `directory`.
    pub fn relative_to(mut self, directory: &Path) -> Self {
        let place = |path: &mut PathBuf| {
            if !is_carried(path) {
                *path = directory.join(&*path);
            }
        };
        self.image.iter_mut().for_each(place);
        self.initrd.iter_mut().for_each(place);
        self.core.iter_mut().for_each(place);
        for file in self.symbols.iter_mut().flatten() {
            *file = directory.join(&*file).display().to_string();
        }
        for module in self.modules.iter_mut().flatten() {
            let (path, args) =
                module.split_once(',').map_or((&**module, None), |(p, a)| (p, Some(a)));
            if !is_carried(Path::new(path)) && !path.is_empty() {
                let path = directory.join(path).display().to_string();
                *module = args.map_or(path.clone(), |args| format!("{path},{args}"));
            }
        }
        if let Some(path) = self.serial.as_deref().and_then(|s| s.strip_prefix("file:")) {
            self.serial = Some(format!("file:{}", directory.join(path).display()));
        }
        self
    }

    /// What `self` says, and what `below` says where `self` is silent.
    pub fn over(self, below: Self) -> Self {
        let Self {
            image,
            memory,
            cpus,
            cpu,
            cmdline,
            modules,
            initrd,
            boot,
            entry,
            load_address,
            irqchip,
            serial,
            timeout,
            on_halt,
            on_reset,
            strict,
            kvm,
            autopsy,
            symbols,
            core,
        } = self;
        Self {
            image: image.or(below.image),
            memory: memory.or(below.memory),
            cpus: cpus.or(below.cpus),
            cpu: cpu.or(below.cpu),
            cmdline: cmdline.or(below.cmdline),
            modules: modules.or(below.modules),
            initrd: initrd.or(below.initrd),
            boot: boot.or(below.boot),
            entry: entry.or(below.entry),
            load_address: load_address.or(below.load_address),
            irqchip: irqchip.or(below.irqchip),
            serial: serial.or(below.serial),
            timeout: timeout.or(below.timeout),
            on_halt: on_halt.or(below.on_halt),
            on_reset: on_reset.or(below.on_reset),
            strict: strict.or(below.strict),
            kvm: kvm.or(below.kvm),
            autopsy: autopsy.or(below.autopsy),
            symbols: symbols.or(below.symbols),
            core: core.or(below.core),
        }
    }
}

/// What the TOML parser says, without the picture that it draws over several lines.
pub(crate) fn one_line(error: &toml::de::Error, text: &str) -> String {
    let words = error.message().replace('\n', "; ");
    let before = error.span().and_then(|span| text.get(..span.start));
    before.map_or(words.clone(), |before| {
        format!("{words} at line {}", before.matches('\n').count() + 1)
    })
}

/// Is it a guest that ringfence carries (`@NAME`), rather than a file?
pub fn is_carried(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with('@'))
}

/// A machine's description, resolved and checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// The image; `@NAME` is a guest that ringfence carries.
    pub image: PathBuf,
    /// Bytes of RAM: at least [`MIN_MEMORY`], whole pages.
    pub memory: u64,
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// What of the processor the guest sees.
    pub cpu: Model,
    /// Command line; `None` where none was given and the protocol's default applies.
    pub cmdline: Option<String>,
    /// Modules.
    pub modules: Vec<ModuleFile>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Boot protocol; found out from the image where `None`.
    pub boot: Option<Protocol>,
    /// Mode in which a flat binary is entered.
    pub entry: Option<Mode>,
    /// Where a flat binary goes.
    pub load_address: Option<u64>,
    /// Interrupt controllers; the protocol's default where `None`.
    pub irqchip: Option<Irqchip>,
    /// Where the serial line goes.
    pub serial: SerialTarget,
    /// Time limit.
    #[serde(serialize_with = "seconds")]
    pub timeout: Option<Duration>,
    /// What a guest that halts for ever is.
    pub on_halt: OnHalt,
    /// What happens to a guest that asks for a reset.
    pub on_reset: OnReset,
    /// Rules of strict mode.
    pub strict: Strict,
    /// KVM's device node.
    pub kvm: PathBuf,
    /// How far an autopsy goes.
    pub autopsy: AutopsyLevel,
    /// Files with symbols, beside the image itself.
    pub symbols: Vec<SymbolFile>,
    /// Where a dead guest's memory and registers go, as an ELF core.
    pub core: Option<PathBuf>,
}

fn seconds<S: serde::Serializer>(limit: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    limit.map(|limit| limit.as_secs_f64()).serialize(to)
}

impl Config {
    /// A machine with this image and every default.
    pub fn new(image: impl Into<PathBuf>) -> Self {
        Self {
            image: image.into(),
            memory: DEFAULT_MEMORY,
            cpus: 1,
            cpu: Model::default(),
            cmdline: None,
            modules: Vec::new(),
            initrd: None,
            boot: None,
            entry: None,
            load_address: None,
            irqchip: None,
            serial: SerialTarget::Stdio,
            timeout: None,
            on_halt: OnHalt::default(),
            on_reset: OnReset::default(),
            strict: Strict::default(),
            kvm: "/dev/kvm".into(),
            autopsy: AutopsyLevel::default(),
            symbols: Vec::new(),
            core: None,
        }
    }

    /// Resolves a description and checks it.
    pub fn resolve(described: Description) -> Result<Self, Error> {
        let mut config = Self::new(described.image.ok_or(Error::NoImage)?);
        if let Some(text) = &described.memory {
            config.memory = parse_size(text).map_err(value("memory"))?;
        }
        if let Some(text) = &described.serial {
            config.serial = text.parse().map_err(value("serial"))?;
        }
        if let Some(text) = &described.strict {
            config.strict = text.parse().map_err(value("strict"))?;
        }
        if let Some(text) = &described.cpu {
            config.cpu = text.parse().map_err(value("cpu"))?;
        }
        let limit = described.timeout.as_deref().map(parse_limit).transpose();
        config.timeout = limit.map_err(value("timeout"))?;
        let address = described.load_address.as_deref().map(parse_address).transpose();
        config.load_address = address.map_err(value("load-address"))?;
        for module in described.modules.iter().flatten() {
            config.modules.push(module.parse().map_err(value("modules"))?);
        }
        config.cpus = described.cpus.unwrap_or(config.cpus);
        config.cmdline = described.cmdline;
        config.initrd = described.initrd;
        config.boot = described.boot;
        config.entry = described.entry;
        config.irqchip = described.irqchip;
        config.on_halt = described.on_halt.unwrap_or_default();
        config.on_reset = described.on_reset.unwrap_or_default();
        config.kvm = described.kvm.unwrap_or(config.kvm);
        config.autopsy = described.autopsy.unwrap_or_default();
        for file in described.symbols.iter().flatten() {
            config.symbols.push(file.parse().map_err(value("symbols"))?);
        }
        config.core = described.core;
        config.check()?;
        Ok(config)
    }

    /// Checks the values, and those that have to go together.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |what, reason: String| Err(Error::Value { what, reason });
        if self.memory < MIN_MEMORY || !self.memory.is_multiple_of(PAGE_SIZE) {
            return bad(
                "memory",
                format!("{} bytes; at least 1M, in whole pages of 4K", self.memory),
            );
        }
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return bad("cpus", format!("{}; 1 to {MAX_CPUS}", self.cpus));
        }
        if self.cpus > 1 && self.irqchip == Some(Irqchip::None) {
            let reason = "none, but several processors start each other through their local APICs; say split or full, or one processor";
            return bad("irqchip", reason.to_owned());
        }
        if self.cpu.hyperv() && self.irqchip == Some(Irqchip::None) {
            let reason = "none, but Hyper-V's interface needs local APICs; say split or full";
            return bad("irqchip", reason.to_owned());
        }
        if self.cmdline.as_deref().is_some_and(|text| text.contains('\0')) {
            return bad("cmdline", "there is a NUL in it".to_owned());
        }
        Ok(())
    }

    /// The interrupt controllers that a machine booted by `protocol` gets. None for images
    /// that ask for nothing, because they cost start-up time; a kernel that comes by a boot
    /// protocol expects a PC's.
    pub fn irqchip_for(&self, protocol: Protocol) -> Irqchip {
        self.irqchip.unwrap_or(match protocol {
            Protocol::Flat | Protocol::Elf if self.cpus == 1 && !self.cpu.hyperv() => Irqchip::None,
            Protocol::Flat | Protocol::Elf => Irqchip::Split,
            _ => Irqchip::Full,
        })
    }
}

fn value(what: &'static str) -> impl FnOnce(String) -> Error {
    move |reason| Error::Value { what, reason }
}

/// `64K`, `128M`, `4G`, in bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[number.len()..].to_ascii_uppercase().as_str() {
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        _ => return Err(format!("{text:?} is not a size: a number with K, M or G, as in 128M")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a size, as in 128M"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} does not fit into 64 bits"))
}

/// `0x100000` or `1048576`.
pub fn parse_address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not an address: a number, 0x for hexadecimal"))
}

/// `500ms`, `10s`, `2m`.
pub fn parse_limit(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(limit) if !limit.is_zero() => Ok(limit),
        Ok(_) => Err(format!("{text:?}: a time limit is longer than nothing")),
        Err(_) => {
            Err(format!("{text:?} is not a time: a number with a unit, as in 500ms, 10s, 2m"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64K"), Ok(64 << 10));
        assert_eq!(parse_size("128M"), Ok(128 << 20));
        assert_eq!(parse_size("4g"), Ok(4 << 30));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        for bad in [
            "",
            "M",
            "128",
            "-1M",
            "1.5G",
            "12X",
            "99999999999999999999G",
            "18446744073709551615G",
            "é",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_overrides_the_file() {
        let file = Description::parse(
            "image = 'kernel.elf'\nmemory = '64M'\ncpus = 2\nserial = 'file:out'\nmodules = ['m,x y', '@hello-real']\n",
            Path::new("dir/ringfence.toml"),
        )
        .unwrap();
        let typed = Description { cpus: Some(4), ..Description::default() };
        let config = Config::resolve(typed.over(file)).unwrap();
        assert_eq!(config.image, Path::new("dir/kernel.elf"));
        assert_eq!((config.memory, config.cpus), (64 << 20, 4));
        assert_eq!(config.serial, SerialTarget::File("dir/out".into()));
        assert_eq!(config.modules[0], ModuleFile { path: "dir/m".into(), args: "x y".into() });
        assert_eq!(config.modules[1].path, Path::new("@hello-real"));
    }

    #[test]
    fn json_is_read_too() {
        let text = r#"{"image": "k", "timeout": "2s", "irqchip": "full", "on-halt": "success"}"#;
        let config =
            Config::resolve(Description::parse(text, Path::new("m.json")).unwrap()).unwrap();
        assert_eq!(config.timeout, Some(Duration::from_secs(2)));
        assert_eq!((config.irqchip, config.on_halt), (Some(Irqchip::Full), OnHalt::Success));
    }

    #[test]
    fn mistakes_are_named() {
        let parse = |text: &str| Description::parse(text, Path::new("m.toml"));
        let error = parse("image = 'k'\nmemroy = '1G'\n").unwrap_err().to_string();
        assert!(error.contains("memroy") && error.contains("m.toml"), "{error}");
        let resolve = |text: &str| Config::resolve(parse(text).unwrap()).unwrap_err().to_string();
        assert!(resolve("memory = '1M'").contains("no image"));
        for (text, word) in [
            ("memory = '512K'", "at least 1M"),
            ("cpus = 0", "cpus"),
            ("cpus = 2\nirqchip = 'none'", "local APIC"),
            ("timeout = '0s'", "timeout"),
            ("serial = 'tty'", "stdio"),
            ("strict = 'very'", "io, mmio"),
            ("load-address = 'here'", "address"),
        ] {
            let error = resolve(&format!("image = 'k'\n{text}\n"));
            assert!(error.contains(word), "{error}");
        }
    }
}
