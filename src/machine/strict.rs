//! Strict mode's rules made into what the run loop checks and what KVM's memory slots guard.

use super::build::Incarnation;
use crate::boot::Loaded;
use crate::config::{self, Config};
use crate::inspect::watch::{Functions, culprit};
use crate::kvm::{Guard, Guarded};
use crate::mem::{PAGE_SIZE, Range};
use crate::vcpu::{self, Record, Violation};
use crate::verdict::{Death, Verdict};
use crate::x86::Mode;

const NULL_PAGE: Range = Range { start: 0, end: PAGE_SIZE };

/// The rules, and the parts of memory that they guard, in ascending order.
pub(super) fn rules(
    config: &Config,
    loaded: &Loaded,
) -> Result<(vcpu::Strict, Vec<Guarded>), config::Error> {
    let config::Strict { io, mmio, msr, text, null } = config.strict;
    if null {
        null_page_is_free(loaded)?;
    }
    let text = if text { read_only_pages(loaded) } else { Vec::new() };
    let hole = null.then_some(Guarded { range: NULL_PAGE, guard: Guard::Hole });
    let read_only = text.iter().map(|&range| Guarded { range, guard: Guard::ReadOnly });
    let guarded = hole.into_iter().chain(read_only).collect();
    let text = text.iter().map(|range| range.start..range.end).collect();
    Ok((vcpu::Strict { io, mmio, msr, text, null }, guarded))
}

/// The verdict with the address of the instruction that broke a rule, where KVM told only that
/// of the next one.
pub(super) fn name_instruction(verdict: Verdict, machine: &Incarnation, image: &[u8]) -> Verdict {
    let Verdict::Died { cause: Death::Strict, detail } = &verdict else { return verdict };
    let this = |violation: &&Violation| violation.finished && violation.to_string() == *detail;
    let mut broken = machine.loops.iter().map(|it| (it, it.violation.as_ref().filter(this)));
    let Some((it, violation)) = broken.find_map(|(it, broken)| Some((it, broken?))) else {
        return verdict;
    };
    let Ok(state) = it.vcpu.state() else { return verdict };
    let functions = Functions::of_image(image, machine.entry);
    let Some(rip) = culprit(violation, &machine.memory, &state, &functions) else {
        return verdict;
    };
    let record = Record { rip, ..violation.record };
    let named = Violation { record, finished: false, ..violation.clone() };
    Verdict::died(Death::Strict, named.to_string())
}

/// Real mode needs the page for its interrupt vectors, and some images are loaded there.
fn null_page_is_free(loaded: &Loaded) -> Result<(), config::Error> {
    let taken = loaded.placed.iter().find(|placed| placed.range.overlaps(&NULL_PAGE));
    let why = match taken {
        _ if loaded.cpu.mode == Mode::Real => {
            "the image is entered in real mode, whose interrupt vectors lie in page zero".to_owned()
        }
        Some(placed) => format!("page zero holds the {}", placed.what),
        None => return Ok(()),
    };
    let reason = format!("the rule null guards page zero, but {why}: say io,mmio,msr,text");
    Err(config::Error::Value { what: "strict", reason })
}

/// The pages of the image's read-only segments, but those that something else shares.
fn read_only_pages(loaded: &Loaded) -> Vec<Range> {
    let mut pages: Vec<Range> = Vec::new();
    for placed in loaded.placed.iter().filter(|placed| placed.read_only) {
        let mut page = whole_pages(placed.range);
        let before = pages.last().map_or(0, |last| last.end);
        page.start = page.start.max(before);
        if page.start < page.end {
            pages.push(page);
        }
    }
    let writable = loaded.placed.iter().filter(|placed| !placed.read_only);
    for other in writable.map(|placed| whole_pages(placed.range)) {
        pages = pages.into_iter().flat_map(|page| without(page, other)).collect();
    }
    if pages.is_empty() {
        log::info!("strict: the image has no read-only segment with a page of its own");
    }
    pages
}

fn whole_pages(range: Range) -> Range {
    Range {
        start: range.start & !(PAGE_SIZE - 1),
        // Saturates only at the end of the address space, where no RAM is.
        end: range.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(range.end),
    }
}

/// What is left of `page` without `other`.
fn without(page: Range, other: Range) -> impl Iterator<Item = Range> {
    let below = Range { start: page.start, end: page.end.min(other.start) };
    let above = Range { start: page.start.max(other.end), end: page.end };
    let parts = if page.overlaps(&other) { [Some(below), Some(above)] } else { [Some(page), None] };
    parts.into_iter().flatten().filter(|part| part.start < part.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{Placed, Protocol};
    use crate::x86::CpuInit;

    fn loaded(cpu: CpuInit, placed: &[(u64, u64, bool)]) -> Loaded {
        let placed = placed.iter().map(|&(start, end, read_only)| Placed {
            what: "image segment".to_owned(),
            range: Range { start, end },
            read_only,
        });
        let description = String::new();
        Loaded { protocol: Protocol::Elf, description, cpu, placed: placed.collect() }
    }

    fn pages(placed: &[(u64, u64, bool)]) -> Vec<(u64, u64)> {
        let loaded = loaded(CpuInit::protected(0, 8, 16), placed);
        read_only_pages(&loaded).iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn read_only_segments_are_guarded_in_whole_pages() {
        assert_eq!(pages(&[(0x10_0010, 0x10_1234, true)]), [(0x10_0000, 0x10_2000)]);
        let two = [(0x10_0000, 0x10_1100, true), (0x10_1800, 0x10_2800, true)];
        assert_eq!(pages(&two), [(0x10_0000, 0x10_2000), (0x10_2000, 0x10_3000)]);
        assert_eq!(pages(&[(0x10_0000, 0x10_1000, false)]), []);
    }

    #[test]
    fn pages_that_something_writable_shares_are_not() {
        let shared = [(0x10_0000, 0x10_2100, true), (0x10_2200, 0x10_3000, false)];
        assert_eq!(pages(&shared), [(0x10_0000, 0x10_2000)]);
        let inside = [
            (0x10_0000, 0x10_1800, true),
            (0x10_1800, 0x10_1900, false),
            (0x10_1900, 0x10_3000, true),
        ];
        assert_eq!(pages(&inside), [(0x10_0000, 0x10_1000), (0x10_2000, 0x10_3000)]);
        assert_eq!(pages(&[(0x10_0000, 0x10_0100, false), (0x10_0100, 0x10_0200, true)]), []);
    }

    #[test]
    fn page_zero_has_to_be_free() {
        let config = Config { strict: config::Strict::ALL, ..Config::new("k") };
        let refused = |loaded: &Loaded| rules(&config, loaded).unwrap_err().to_string();
        assert!(refused(&loaded(CpuInit::real(0, 0x7C00), &[])).contains("real mode"));
        let at_zero = loaded(CpuInit::protected(0, 8, 16), &[(0xFFF, 0x2000, true)]);
        assert!(refused(&at_zero).contains("image segment"));

        let above = loaded(CpuInit::protected(0, 8, 16), &[(0x1000, 0x2000, true)]);
        let (strict, guarded) = rules(&config, &above).unwrap();
        assert!(strict.null && strict.text.len() == 1 && strict.text[0].contains(&0x1FFF));
        let guards: Vec<_> = guarded.iter().map(|g| (g.range.start, g.guard)).collect();
        assert_eq!(guards, [(0, Guard::Hole), (0x1000, Guard::ReadOnly)]);
    }
}
