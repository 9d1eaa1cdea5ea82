//! Statistics as a table that a person reads.

use std::fmt;

use super::stats::{Kernel, Statistics};
use crate::kvm::{Stat, StatKind, StatUnit};

/// Lines of each part: enough for what matters; the JSON report has them all.
const MOST: usize = 20;

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        head(f, "exits by kind")?;
        for line in &self.kinds {
            self.line(f, &line.exit, line.count, line.user_seconds)?;
        }
        self.line(f, "all", self.exits, self.user_seconds)?;
        if !self.places.is_empty() {
            head(f, "exits by port, address, MSR")?;
        }
        for line in self.places.iter().take(MOST) {
            let device = line.device.as_deref().unwrap_or_default();
            let what = format!("{:<10} {:#x} {device}", line.exit, line.address);
            self.line(f, &what, line.count, line.user_seconds)?;
        }
        let further = self.places.iter().skip(MOST).map(|line| line.count).sum::<u64>();
        others(f, further + self.other_places)?;
        if !self.functions.is_empty() {
            head(f, "exits by function of the guest")?;
        }
        for line in self.functions.iter().take(MOST) {
            let address = format!("{:#x}", line.address);
            let what = line.function.as_deref().unwrap_or(&address);
            self.line(f, what, line.count, line.user_seconds)?;
        }
        let further = self.functions.iter().skip(MOST).map(|line| line.count).sum::<u64>();
        others(f, further + self.other_code)?;
        write!(f, "{}", self.kernel)
    }
}

fn head(f: &mut fmt::Formatter<'_>, what: &str) -> fmt::Result {
    writeln!(f, "{what:<38} {:>11} {:>6} {:>12} {:>9}", "count", "%", "user time", "each")
}

fn others(f: &mut fmt::Formatter<'_>, count: u64) -> fmt::Result {
    if count == 0 { Ok(()) } else { writeln!(f, "  {:<36} {count:>11}", "others") }
}

impl Statistics {
    fn line(
        &self,
        f: &mut fmt::Formatter<'_>,
        what: &str,
        count: u64,
        seconds: f64,
    ) -> fmt::Result {
        let share = 100.0 * count as f64 / self.exits.max(1) as f64;
        let (total, each) = (time(seconds), time(seconds / count.max(1) as f64));
        writeln!(f, "  {what:<36} {count:>11} {share:>6.1} {total:>12} {each:>9}")
    }
}

/// A time in a unit that fits.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s if s >= 1e-6 => format!("{:.2} us", s * 1e6),
        s => format!("{:.0} ns", s * 1e9),
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vm = (!self.vm.is_empty()).then(|| ("of the VM".to_owned(), &self.vm));
        let vcpus = self.vcpus.iter().enumerate();
        let vcpus = vcpus.filter(|(_, stats)| !stats.is_empty());
        let vcpus = vcpus.map(|(number, stats)| (format!("of vCPU {number}"), stats));
        for (whose, stats) in vm.into_iter().chain(vcpus) {
            writeln!(f, "KVM's counters {whose}")?;
            for stat in stats {
                writeln!(f, "  {:<36} {:>11}", stat.name, amount(stat))?;
            }
        }
        Ok(())
    }
}

/// A counter's value with its unit; of a histogram, how many it holds.
fn amount(stat: &Stat) -> String {
    let histogram = matches!(stat.kind, StatKind::LinearHistogram | StatKind::LogHistogram);
    let value = stat.values.iter().sum::<u64>();
    if histogram {
        return format!("{value} times");
    }
    let base = if stat.binary { 2_f64 } else { 10.0 };
    let scaled = value as f64 * base.powi(stat.exponent.into());
    match stat.unit {
        StatUnit::Seconds => time(scaled),
        StatUnit::Bytes => format!("{scaled:.0} B"),
        StatUnit::Cycles => format!("{scaled:.0} cycles"),
        StatUnit::Boolean if value == 0 => "no".to_owned(),
        StatUnit::Boolean => "yes".to_owned(),
        StatUnit::None | StatUnit::Other => format!("{scaled:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::watch::stats::{FunctionLine, KindLine, PlaceLine};

    fn stat(name: &str, unit: StatUnit, exponent: i16, values: &[u64]) -> Stat {
        let kind = if values.len() > 1 { StatKind::LogHistogram } else { StatKind::Cumulative };
        let name = name.to_owned();
        Stat { name, kind, unit, exponent, binary: false, values: values.to_vec() }
    }

    #[test]
    fn a_person_reads_it() {
        let place = |address| PlaceLine {
            exit: "pio_out".into(),
            address,
            device: (address == 0x3F8).then_some("com1".into()),
            count: 2,
            user_seconds: 0.002,
        };
        let function = FunctionLine {
            function: Some("put_char".to_owned()),
            address: 0x1000,
            count: 50,
            user_seconds: 0.05,
        };
        let vcpu = vec![
            stat("exits", StatUnit::None, 0, &[123]),
            stat("halt_wait_ns", StatUnit::Seconds, -9, &[1500]),
            stat("halt_wait_hist", StatUnit::Seconds, -9, &[3, 4]),
            stat("unused", StatUnit::None, 0, &[0]),
        ];
        let stats = Statistics {
            exits: 50,
            user_seconds: 0.05,
            kinds: vec![KindLine { exit: "pio_out".into(), count: 50, user_seconds: 0.05 }],
            places: (0x3E4..=0x3F8).rev().map(place).collect(),
            other_places: 8,
            functions: vec![function],
            other_code: 0,
            kernel: Kernel::new(Vec::new(), vec![vcpu]),
        };
        let table = stats.to_string();
        let lines: Vec<_> =
            table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in [
            "exits by kind count % user time each",
            "pio_out 50 100.0 50.00 ms 1.00 ms",
            "pio_out 0x3f8 com1 2 4.0 2.00 ms 1.00 ms",
            "others 10",
            "put_char 50 100.0 50.00 ms 1.00 ms",
            "KVM's counters of vCPU 0",
            "exits 123",
            "halt_wait_ns 1.50 us",
            "halt_wait_hist 7 times",
        ] {
            assert!(lines.iter().any(|found| found == line), "{line}\nin\n{table}");
        }
        assert!(!table.contains("unused"), "{table}");
    }
}
