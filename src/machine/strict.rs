//! Strict mode's rules made into what the run loop checks and what KVM's memory slots guard.

use std::sync::Arc;

use super::build::Incarnation;
use super::guards::Guards;
use crate::boot::Loaded;
use crate::config::{self, Config};
use crate::inspect::Functions;
use crate::inspect::watch::culprit;
use crate::kvm::{Guard, Guarded};
use crate::mem::{GuestMemory, PAGE_SIZE, Range};
use crate::vcpu::{self, Record, Violation};
use crate::verdict::{Death, Verdict};
use crate::x86::Mode;

const NULL_PAGE: Range = Range { start: 0, end: PAGE_SIZE };

/// The rules, and the parts of memory that they guard, in ascending order.
pub(super) fn rules(
    config: &Config,
    loaded: &Loaded,
    memory: &GuestMemory,
) -> Result<(vcpu::Strict, Vec<Guarded>), config::Error> {
    let config::Strict { io, mmio, msr, text, null } = config.strict;
    if null {
        null_page_is_free(loaded)?;
    }
    let text = if text { read_only_pages(loaded) } else { Vec::new() };
    for Range { start, end } in &text {
        log::info!("strict: {start:#x} to {end:#x} may not be written");
    }
    let hole = null.then_some(Guarded { range: NULL_PAGE, guard: Guard::Hole });
    let read_only = text.iter().map(|&range| Guarded { range, guard: Guard::ReadOnly });
    let guarded: Vec<_> = hole.into_iter().chain(read_only).collect();
    let guards = Guards { memory: memory.clone(), guarded: guarded.clone() };
    let guards = (!guarded.is_empty()).then(|| Arc::new(guards) as Arc<dyn vcpu::Guards>);
    let text = text.iter().map(|range| range.start..range.end).collect();
    Ok((vcpu::Strict { io, mmio, msr, text, null, guards }, guarded))
}

/// Says what the rule text does not guard of what it names.
pub(super) fn warn(config: &Config, loaded: &Loaded) {
    if let Some(words) = unguarded(config.strict, loaded) {
        log::warn!("{words}");
    }
}

/// What is to be said of read-only segments that are not guarded at all. Of one that shares only
/// its first or last page nothing is, nor of an image without any where each rule is asked for.
fn unguarded(strict: config::Strict, loaded: &Loaded) -> Option<String> {
    if !strict.text {
        return None;
    }
    let pages = read_only_pages(loaded);
    let segments: Vec<_> =
        loaded.placed.iter().filter(|it| it.read_only && !it.range.is_empty()).collect();
    if segments.is_empty() {
        let named = strict != config::Strict::ALL;
        let words = "--strict=text guards nothing: the image has no read-only segment";
        return named.then(|| words.to_owned());
    }
    let guarded = |range: &Range| pages.iter().any(|page| page.overlaps(range));
    let missed = segments.iter().filter(|it| !guarded(&it.range));
    let missed: Vec<_> = missed.map(|it| format!("{:#x}", it.range.start)).collect();
    (!missed.is_empty()).then(|| {
        format!(
            "--strict=text does not guard the read-only segments at {}: something writable shares their pages",
            missed.join(", ")
        )
    })
}

/// The verdict with the address of the instruction that broke a rule, where KVM told only that
/// of the next one.
pub(super) fn name_instruction(
    verdict: Verdict,
    machine: &Incarnation,
    functions: impl FnOnce() -> Functions,
) -> Verdict {
    let Verdict::Died { cause: Death::Strict, detail } = &verdict else { return verdict };
    let this = |violation: &&Violation| violation.finished && violation.to_string() == *detail;
    let mut broken = machine.loops.iter().map(|it| (it, it.violation.as_ref().filter(this)));
    let Some((it, violation)) = broken.find_map(|(it, broken)| Some((it, broken?))) else {
        return verdict;
    };
    let Ok(state) = it.vcpu.state() else { return verdict };
    let Some(rip) = culprit(violation.kind, &violation.record, &machine.memory, &state, functions)
    else {
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
    use crate::mem;
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
    fn segments_that_are_not_guarded_at_all_are_named() {
        let said = |rules: &str, placed: &[(u64, u64, bool)]| {
            let loaded = loaded(CpuInit::protected(0, 8, 16), placed);
            unguarded(rules.parse().unwrap(), &loaded)
        };
        let shared = [(0x10_0000, 0x10_0100, true), (0x10_0200, 0x10_0300, false)];
        for rules in ["all", "text"] {
            let words = said(rules, &shared).unwrap();
            assert!(words.contains("segments at 0x100000:"), "{words}");
        }
        assert_eq!(said("io,mmio", &shared), None);
        let boundary = [(0x10_0000, 0x10_1100, true), (0x10_1200, 0x10_3000, false)];
        assert_eq!(said("text", &boundary), None);
        assert_eq!(said("all", &[(0x10_0000, 0x10_1000, false)]), None);
        let none = said("text,io", &[(0x10_0000, 0x10_1000, false)]).unwrap();
        assert!(none.contains("no read-only segment"), "{none}");
    }

    #[test]
    fn page_zero_has_to_be_free() {
        let config = Config { strict: config::Strict::ALL, ..Config::new("k") };
        let memory = mem::create(1 << 20).unwrap();
        let refused = |loaded: &Loaded| rules(&config, loaded, &memory).unwrap_err().to_string();
        assert!(refused(&loaded(CpuInit::real(0, 0x7C00), &[])).contains("real mode"));
        let at_zero = loaded(CpuInit::protected(0, 8, 16), &[(0xFFF, 0x2000, true)]);
        assert!(refused(&at_zero).contains("image segment"));

        let above = loaded(CpuInit::protected(0, 8, 16), &[(0x1000, 0x2000, true)]);
        let (strict, guarded) = rules(&config, &above, &memory).unwrap();
        assert!(strict.null && strict.text.len() == 1 && strict.text[0].contains(&0x1FFF));
        let guards: Vec<_> = guarded.iter().map(|g| (g.range.start, g.guard)).collect();
        assert_eq!(guards, [(0, Guard::Hole), (0x1000, Guard::ReadOnly)]);
    }
}
