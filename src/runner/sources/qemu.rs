//! QEMU's options, as far as kvm-unit-tests use them: what they mean here, what is harmless to
//! leave out, and what a test cannot do without.

use super::words::split;
use crate::config::{Config, Description};
use crate::irq::Irqchip;

/// What QEMU's options ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) memory: Option<String>,
    pub(super) cpus: Option<u32>,
    /// As `--cpu` takes it.
    pub(super) cpu: Option<String>,
    pub(super) append: String,
    pub(super) initrd: Option<String>,
    pub(super) irqchip: Option<Irqchip>,
    /// What is not as it asks, and probably does no harm.
    pub(super) notes: Vec<String>,
    /// Why it cannot run.
    pub(super) unfit: Option<String>,
}

/// Options without a value that change nothing here.
const HARMLESS: &[&str] =
    &["-enable-kvm", "-nodefaults", "-nographic", "-no-reboot", "-no-user-config"];

/// The same with a value.
const HARMLESS_WITH_VALUE: &[&str] =
    &["-display", "-serial", "-monitor", "-vnc", "-vga", "-name", "-rtc", "-accel"];

/// QEMU's processor where a test names none.
const QEMU64: &str = "qemu64";

/// QEMU's processor models as ours: the psABI level of each, and what `qemu64` has beyond its own.
const MODELS: &[(&str, &str)] = &[
    ("host", "max"),
    ("max", "max"),
    (QEMU64, "x86-64-v1,+sse3,+cx16,+lahf-lm,+x2apic"),
    ("Nehalem", "x86-64-v2"),
    ("Westmere", "x86-64-v2"),
    ("SandyBridge", "x86-64-v2"),
    ("IvyBridge", "x86-64-v2"),
    ("Haswell", "x86-64-v3"),
    ("Broadwell", "x86-64-v3"),
    ("Skylake-Client", "x86-64-v3"),
    ("Skylake-Server", "x86-64-v4"),
    ("EPYC", "x86-64-v3"),
];

/// Devices that are here under any name, or do nothing for a test.
const HAVE: &[&str] = &["pc-testdev", "isa-debug-exit"];

pub(super) fn read(params: &str) -> Result<Asked, String> {
    let words = split(params)?;
    let mut asked = Asked::default();
    asked.cpu(QEMU64);
    if let Some(command) = words.commands.first() {
        asked.refuse(format!("its machine comes from a shell command: `{command}`"));
        return Ok(asked);
    }
    let mut words = words.words.into_iter();
    while let Some(word) = words.next() {
        // QEMU takes both spellings.
        let option = word.strip_prefix('-').filter(|rest| rest.starts_with('-')).unwrap_or(&word);
        let value = || words.next().ok_or(format!("{option} has no value"));
        if !asked.option(option, value)? {
            asked.refuse(format!("QEMU's option {option} has no meaning here"));
            break; // the next word may be its value, or an option
        }
    }
    Ok(asked)
}

impl Asked {
    fn refuse(&mut self, why: String) {
        self.unfit.get_or_insert(why);
    }

    /// Follows an option; `false`: nobody here knows it, nor whether it has a value.
    fn option(
        &mut self,
        option: &str,
        value: impl FnOnce() -> Result<String, String>,
    ) -> Result<bool, String> {
        match option {
            "-m" => self.memory = Some(memory(&value()?)?),
            "-smp" => self.cpus = processors(&value()?)?,
            "-append" => self.append = format!(" {}", value()?),
            "-initrd" => self.initrd = Some(value()?),
            "-cpu" => self.cpu(&value()?),
            "-machine" | "-M" => value()?.split(',').for_each(|part| self.machine(part)),
            "-device" => self.device(&value()?),
            "-overcommit" | "-global" => self.notes.push(format!("{option} {}", value()?)),
            _ if HARMLESS_WITH_VALUE.contains(&option) => drop(value()?),
            _ => return Ok(HARMLESS.contains(&option)),
        }
        Ok(true)
    }

    fn device(&mut self, value: &str) {
        let kind = value.split(',').next().unwrap_or_default();
        if !HAVE.contains(&kind) {
            self.refuse(format!("needs QEMU's device {kind}"));
        }
    }

    /// QEMU's models and features, as far as they are ours.
    fn cpu(&mut self, value: &str) {
        let mut parts = value.split(',');
        let model = parts.next().unwrap_or_default();
        let known = MODELS.iter().find(|(name, _)| *name == model);
        if known.is_none() {
            self.notes.push(format!("-cpu {model}"));
        }
        let mut cpu = known.map_or("max", |(_, ours)| ours).to_owned();
        for part in parts {
            let part = match part {
                // Bits of an address are the host's anyway; migration is none of ours.
                "host-phys-bits" | "migratable=no" => continue,
                "hv_passthrough" => "hyperv",
                part => part,
            };
            let more = format!("{cpu},{part}");
            if knows(&more) { cpu = more } else { self.notes.push(format!("-cpu {part}")) }
        }
        self.cpu = Some(cpu).filter(|cpu| cpu != "max");
    }

    fn machine(&mut self, part: &str) {
        match part.split_once('=').unwrap_or(("type", part)) {
            ("kernel-irqchip" | "kernel_irqchip", "split") => {
                self.irqchip = Some(Irqchip::Split);
            }
            ("kernel-irqchip" | "kernel_irqchip", "on") | ("accel", "kvm") => {}
            ("type", "pc" | "q35" | "microvm") => {}
            ("vmport", "on") => self.refuse("needs VMware's port 0x5658 of QEMU".to_owned()),
            ("kernel-irqchip" | "kernel_irqchip", _) | ("accel", _) => {
                self.refuse(format!("needs QEMU's -machine {part}"));
            }
            _ => self.notes.push(format!("-machine {part}")),
        }
    }
}

/// Is this a processor that `--cpu` takes?
fn knows(cpu: &str) -> bool {
    let image = Some("image".into());
    Config::resolve(Description { image, cpu: Some(cpu.to_owned()), ..Description::default() })
        .is_ok()
}

/// `-m`: a number of MiB, or with a suffix; `size=` before it, other properties behind.
fn memory(value: &str) -> Result<String, String> {
    let size = value.split(',').next().unwrap_or_default();
    let size = size.strip_prefix("size=").unwrap_or(size);
    let size = if size.parse::<u64>().is_ok() { format!("{size}M") } else { size.to_owned() };
    crate::config::parse_size(&size).map(|_| size)
}

/// `-smp`: a number; `cpus=` before it, topology behind.
pub(super) fn processors(value: &str) -> Result<Option<u32>, String> {
    let count = value.split(',').next().unwrap_or_default();
    let count = count.strip_prefix("cpus=").unwrap_or(count);
    if count.is_empty() {
        return Ok(None);
    }
    count.parse().map(Some).map_err(|_| format!("{value:?} is not a number of processors"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_meaning() {
        let asked = read("-cpu max -m 2560 -smp 2,cores=2 -append 'a b' -initrd x -enable-kvm");
        let expected = Asked {
            memory: Some("2560M".to_owned()),
            cpus: Some(2),
            append: " a b".to_owned(),
            initrd: Some("x".to_owned()),
            ..Asked::default()
        };
        assert_eq!(asked, Ok(expected));
        assert_eq!(read("-m 4g").unwrap().memory.as_deref(), Some("4g"));
        assert_eq!(read("--machine kernel-irqchip=split").unwrap().irqchip, Some(Irqchip::Split));
    }

    #[test]
    fn what_does_no_harm_is_noted() {
        let notes = |text: &str| read(text).unwrap().notes;
        let old = read("-cpu qemu64,-x2apic,vendor=GenuineIntel,hv_passthrough").unwrap();
        let qemu64 = "x86-64-v1,+sse3,+cx16,+lahf-lm,+x2apic";
        assert_eq!(read("").unwrap().cpu.as_deref(), Some(qemu64));
        assert_eq!(old.cpu, Some(format!("{qemu64},-x2apic,vendor=GenuineIntel,hyperv")));
        let named = read("-cpu IvyBridge,phys-bits=36").unwrap();
        assert_eq!(named.cpu.as_deref(), Some("x86-64-v2,phys-bits=36"));
        assert_eq!(notes("-cpu core2duo"), ["-cpu core2duo"]);
        assert_eq!(notes("-cpu max,+vmx-mbec"), ["-cpu +vmx-mbec"]);
        assert_eq!(read("-cpu max,host-phys-bits").unwrap().cpu, None);
        assert_eq!(notes("-machine pit=off -overcommit cpu-pm=on").len(), 2);
        assert!(notes("-device pc-testdev -nodefaults -display none").is_empty());
    }

    #[test]
    fn what_cannot_be_done_without_is_a_reason() {
        let unfit = |text: &str| read(text).unwrap().unfit.unwrap();
        assert_eq!(unfit("-device edu"), "needs QEMU's device edu");
        assert!(unfit("-machine vmport=on -cpu max").contains("0x5658"));
        assert!(unfit("-drive file=x").contains("-drive"));
        assert!(unfit("-cpu max -no-hpet").contains("-no-hpet"));
        assert!(unfit("-no-hpet -m lots").contains("-no-hpet"));
        assert!(unfit("-machine accel=tcg").contains("tcg"));
        assert!(unfit("-m `free`").contains("shell"));
        for bad in ["-m", "-m lots", "-smp many", "-cpu 'max"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
