//! `unittests.cfg` of kvm-unit-tests, as it is: what `run_tests.sh` would give to QEMU becomes a
//! machine, and what has no meaning here a skipped test with the reason.
//! (kvm-unit-tests, docs/unittests.md, scripts/common.bash, scripts/runtime.bash)

use std::path::Path;
use std::time::Duration;

use super::words::{Words, split};
use super::{Facts, Sources, environment, qemu};
use crate::config::{Config, Description};
use crate::runner::Error;
use crate::runner::test::{Expect, Test};

/// What `run_tests.sh` gives a test that says nothing of it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);

/// What stands for no limit: `timeout(1)` takes 0 so.
const NO_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// A section of the file, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Section {
    name: String,
    file: String,
    smp: String,
    test_args: String,
    qemu_params: String,
    groups: String,
    arch: String,
    check: String,
    accel: String,
    timeout: String,
    disabled_if: String,
}

pub(super) fn read(sources: &Sources<'_>, path: &Path) -> Result<Vec<Test>, Error> {
    let shown = path.display().to_string();
    let text = std::fs::read(path).map_err(|source| Error::Read { path: shown.clone(), source })?;
    let bad = |reason: String| Error::Tests { path: shown.clone(), reason };
    let sections = parse(&String::from_utf8_lossy(&text)).map_err(bad)?;
    if sections.is_empty() {
        return Err(Error::NoTest(format!("there is no [section] in {shown}")));
    }
    let arch = built_for(path);
    let one = |section: &Section| {
        let bad = |reason| bad(format!("[{}]: {reason}", section.name));
        test(sources, section, path, &arch).map_err(bad)
    };
    sections.iter().map(one).collect()
}

/// The sections of a file; lines that no field is known for are passed over, as
/// `run_tests.sh` does.
fn parse(text: &str) -> Result<Vec<Section>, String> {
    let mut sections: Vec<Section> = Vec::new();
    // `read -r` takes blanks off both ends.
    let mut lines = text.lines().map(str::trim).enumerate();
    while let Some((at, line)) = lines.next() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            sections.push(Section { name: name.to_owned(), ..Section::default() });
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let (key, mut value) = (key.trim_end(), value.trim_start().to_owned());
        if let Some(first) = value.strip_prefix("\"\"\"") {
            let mut rest = lines.by_ref().map(|(_, line)| line);
            value = long_value(first, &mut rest)
                .ok_or(format!("line {}: the \"\"\" is not closed", at + 1))?;
        }
        if let Some(field) = sections.last_mut().and_then(|it| it.field(key)) {
            *field = value;
        }
    }
    Ok(sections)
}

/// A value over several lines, to the next `"""`.
fn long_value<'a>(first: &'a str, rest: &mut dyn Iterator<Item = &'a str>) -> Option<String> {
    let mut value = String::new();
    let mut line = first;
    loop {
        if let Some(last) = line.trim_end().strip_suffix("\"\"\"") {
            return Some(value + last);
        }
        value += line.strip_suffix('\\').unwrap_or(line);
        value.push(' ');
        line = rest.next()?;
    }
}

impl Section {
    fn field(&mut self, key: &str) -> Option<&mut String> {
        Some(match key {
            "file" => &mut self.file,
            "smp" => &mut self.smp,
            "test_args" => &mut self.test_args,
            "qemu_params" | "extra_params" => &mut self.qemu_params,
            "groups" => &mut self.groups,
            "arch" => &mut self.arch,
            "check" => &mut self.check,
            "accel" => &mut self.accel,
            "timeout" => &mut self.timeout,
            "disabled_if" => &mut self.disabled_if,
            _ => return None,
        })
    }
}

/// What a section asks for.
#[derive(Default)]
struct Asked {
    machine: Description,
    notes: Vec<String>,
    skip: Option<String>,
}

/// # Errors
/// What of it is not understood, in words.
fn asked(section: &Section, directory: &Path) -> Result<Asked, String> {
    let cmdline = split(&section.test_args)?;
    let qemu = qemu::read(&section.qemu_params)?;
    // Only the suite's scripts know what a variable holds.
    let variable = section
        .smp
        .starts_with('$')
        .then(|| format!("its number of processors comes from a shell variable: {}", section.smp));
    let smp = if variable.is_some() { None } else { qemu::processors(&section.smp)? };
    let skip = variable.or(reason(&cmdline)).or(qemu.unfit);
    let machine = Description {
        cpus: qemu.cpus.or(smp),
        cmdline: Some([cmdline.text, qemu.append].concat()).filter(|text| !text.is_empty()),
        initrd: qemu.initrd.map(|path| directory.join(path)),
        timeout: Some(limit(&section.timeout)?),
        memory: qemu.memory,
        irqchip: qemu.irqchip,
        cpu: qemu.cpu,
        ..Description::default()
    };
    Ok(Asked { machine, notes: qemu.notes, skip })
}

fn test(sources: &Sources<'_>, section: &Section, path: &Path, arch: &str) -> Result<Test, String> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let image = directory.join(&section.file);
    let missing = (!image.is_file()).then(|| format!("there is no file {}", image.display()));
    // One section that is odd keeps no other from running.
    let odd = |why| Asked { skip: Some(format!("not understood: {why}")), ..Asked::default() };
    let asked = asked(section, directory).unwrap_or_else(odd);
    let machine = Description { image: Some(image), ..asked.machine };
    // run_tests.sh skips what QEMU refuses to start.
    let resolved = Config::resolve(sources.typed.clone().over(machine.clone()));
    let impossible = resolved.err().map(|e| format!("no machine here is as it asks: {e}"));
    let machine = match &impossible {
        Some(_) => Description { image: machine.image, ..Description::default() },
        None => machine,
    };
    let skip = unfit(section, arch).or(missing).or(asked.skip).or(impossible);
    let groups: Vec<_> = section.groups.split_whitespace().map(str::to_owned).collect();
    let facts = Facts {
        expect: Some(Expect::KvmUnitTests),
        manual: groups.iter().any(|group| group == "nodefault"),
        tags: groups,
        skip,
        notes: asked.notes,
        mailbox: Some(false),
        ..Facts::default()
    };
    let suite = path.display().to_string();
    let mut test = sources.test(section.name.clone(), suite, machine, facts)?;
    test.module = Some(("initrd".to_owned(), environment::text(&test)));
    Ok(test)
}

fn reason(words: &Words) -> Option<String> {
    let command = words.commands.first()?;
    Some(format!("its arguments come from a shell command: `{command}`"))
}

/// Why a test is not for this host or this build.
fn unfit(section: &Section, arch: &str) -> Option<String> {
    if !section.arch.is_empty() && section.arch != arch {
        return Some(format!("{} only", section.arch));
    }
    if !section.accel.is_empty() && !section.accel.starts_with("kvm") {
        return Some(format!("{} only", section.accel));
    }
    if !section.disabled_if.is_empty() {
        return Some(format!("hangs on a shell condition: {}", section.disabled_if));
    }
    section.check.split_whitespace().find_map(|check| {
        let (file, value) = check.split_once('=')?;
        let found = std::fs::read_to_string(file).ok();
        let holds = found.is_some_and(|found| found.trim_end_matches('\n') == value);
        (!holds).then(|| format!("{file} not equal to {value}"))
    })
}

/// `timeout(1)`'s words: a number, not always a whole one, of seconds or with s, m, h or d.
fn limit(text: &str) -> Result<String, String> {
    const UNITS: [(char, f64); 4] = [('s', 1.0), ('m', 60.0), ('h', 3600.0), ('d', 86400.0)];
    let with_unit = |(unit, seconds)| Some((text.strip_suffix(unit)?, seconds));
    let (number, unit) = UNITS.into_iter().find_map(with_unit).unwrap_or((text, 1.0));
    let time = number.parse::<f64>().ok();
    let limit = match time.and_then(|number| Duration::try_from_secs_f64(number * unit).ok()) {
        None if text.is_empty() => DEFAULT_TIMEOUT,
        None => return Err(format!("timeout {text:?} is not a time, as in 90 or 90s")),
        Some(Duration::ZERO) => NO_TIMEOUT,
        Some(limit) => limit,
    };
    Ok(humantime::format_duration(limit).to_string().replace(' ', ""))
}

/// What the images beside the file were built for, as the tree's configuration has it.
fn built_for(path: &Path) -> String {
    let config = path.parent().map(|it| it.join("..").join("config.mak"));
    let text = config.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let arch = text.lines().find_map(|line| line.strip_prefix("ARCH="));
    arch.unwrap_or("x86_64").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_their_fields() {
        let text = "# comment\nfile = before\n[a]\nfile = a.flat\nsmp = 2\ntest_args = 'x y'\n\
                    qemu_params = \"\"\"-cpu max \\\n-m 1g\"\"\"\ngroups = g nodefault\nodd = 1\n\n\
                    \t[b] \n#file = no\n  file=b.flat \nextra_params = -smp 3\n";
        let sections = parse(text).unwrap();
        assert_eq!(sections.len(), 2);
        let (a, b) = (&sections[0], &sections[1]);
        assert_eq!((a.name.as_str(), a.file.as_str(), a.smp.as_str()), ("a", "a.flat", "2"));
        assert_eq!(a.test_args, "'x y'");
        assert_eq!(
            a.qemu_params.split_whitespace().collect::<Vec<_>>(),
            ["-cpu", "max", "-m", "1g"]
        );
        assert_eq!(a.groups, "g nodefault");
        assert_eq!((b.file.as_str(), b.qemu_params.as_str()), ("b.flat", "-smp 3"));
        assert!(parse("[a]\nqemu_params = \"\"\"-cpu\n").unwrap_err().contains("line 2"));
    }

    #[test]
    fn limits() {
        assert_eq!(limit(""), Ok("1m30s".to_owned()));
        assert_eq!(limit("180"), Ok("3m".to_owned()));
        assert_eq!(limit("10s"), Ok("10s".to_owned()));
        assert_eq!(limit("1.5"), Ok("1s500ms".to_owned()));
        assert_eq!(limit("2m"), Ok("2m".to_owned()));
        assert_eq!((limit("0"), limit("0s")), (Ok("1day".to_owned()), Ok("1day".to_owned())));
        for bad in ["soon", "s", "-1", "1e99", "nan"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn checks_and_architectures() {
        let dir = std::env::temp_dir().join(format!("ringfence-check-{}", std::process::id()));
        std::fs::write(&dir, "Y\n").unwrap();
        let file = dir.display().to_string();
        let with = |check: &str, arch: &str| {
            let (check, arch) = (check.to_owned(), arch.to_owned());
            unfit(&Section { check, arch, ..Section::default() }, "x86_64")
        };
        assert_eq!(with(&format!("{file}=Y"), "x86_64"), None);
        assert!(with(&format!("{file}=N"), "").unwrap().contains("not equal to N"));
        assert!(with("/nonexistent=Y", "").is_some());
        assert_eq!(with("", "i386").unwrap(), "i386 only");
        std::fs::remove_file(&dir).unwrap();
    }
}
