//! `--trace-filter`: which exits are shown.

use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::kvm::ExitKind;
use crate::vcpu::Record;

/// Terms of which one has to fit; everything fits where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(Vec<Term>);

/// Kinds of exit, and the ports, addresses or MSRs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    kinds: Vec<ExitKind>,
    addresses: RangeInclusive<u64>,
}

/// Names for several kinds at once.
const GROUPS: &[(&str, &[ExitKind])] = &[
    ("pio", &[ExitKind::PioIn, ExitKind::PioOut]),
    ("mmio", &[ExitKind::MmioRead, ExitKind::MmioWrite]),
    ("msr", &[ExitKind::ReadMsr, ExitKind::WriteMsr]),
];

impl Filter {
    /// Is the exit shown?
    pub fn shows(&self, record: &Record) -> bool {
        let fits = |term: &Term| {
            term.kinds.contains(&record.kind) && term.addresses.contains(&record.address)
        };
        self.0.is_empty() || self.0.iter().any(fits)
    }
}

impl FromStr for Filter {
    type Err = String;

    /// Terms separated by commas: KIND, or KIND:FIRST or KIND:FIRST-LAST.
    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(term).collect::<Result<_, _>>().map(Self)
    }
}

fn term(text: &str) -> Result<Term, String> {
    let text = text.trim();
    let (name, range) = text.split_once(':').map_or((text, None), |(n, r)| (n, Some(r)));
    let kinds = kinds(name).ok_or_else(|| {
        let names = GROUPS.iter().map(|(name, _)| *name).chain(ExitKind::NAMES);
        format!("{name:?} is no kind of exit: {}", names.collect::<Vec<_>>().join(", "))
    })?;
    let addresses = match range {
        None => 0..=u64::MAX,
        Some(range) => {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            number(first)?..=number(last)?
        }
    };
    if addresses.is_empty() {
        return Err(format!("{text:?}: the range ends before it begins"));
    }
    Ok(Term { kinds, addresses })
}

fn kinds(name: &str) -> Option<Vec<ExitKind>> {
    if let Some((_, kinds)) = GROUPS.iter().find(|(group, _)| *group == name) {
        return Some(kinds.to_vec());
    }
    ExitKind::ALL.into_iter().find(|kind| kind.name() == name).map(|kind| vec![kind])
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not a number (0x for hexadecimal)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Exit;

    fn out(port: u16) -> Record {
        Record::new(0, 0, &Exit::PioOut { port, size: 1, data: &[0] })
    }

    #[test]
    fn one_term_has_to_fit() {
        let filter: Filter = "pio_out:0x3f8-0x3FF, mmio, hlt".parse().unwrap();
        assert!(filter.shows(&out(0x3F8)) && filter.shows(&out(0x3FF)));
        assert!(!filter.shows(&out(0x3F7)) && !filter.shows(&out(0x400)));
        assert!(!filter.shows(&Record::new(
            0,
            0,
            &Exit::PioIn { port: 0x3F8, size: 1, data: &mut [0] }
        )));
        assert!(filter.shows(&Record::new(0, 0, &Exit::MmioWrite { address: 1, data: &[0] })));
        assert!(filter.shows(&Record::new(0, 0, &Exit::Hlt)));
        assert!(Filter::default().shows(&out(1)));
        let one: Filter = "pio:244".parse().unwrap();
        assert!(one.shows(&out(0xF4)) && !one.shows(&out(0xF5)));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("", "no kind"),
            ("pio,", "no kind"),
            ("io", "pio_out"),
            ("pio:", "not a number"),
            ("pio:5-4", "before it begins"),
            ("mmio:x", "not a number"),
        ] {
            let error = text.parse::<Filter>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
