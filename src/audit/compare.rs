//! Two audits side by side: what differs between two hosts. Called by `cli`; data only.

use std::collections::HashMap;

use super::facts::{self, Fact, TOPICS};
use super::report::{Cost, Ran, Report};

/// Something that is not the same on both hosts.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// Of what kind: a topic of the facts, or "costs".
    pub topic: String,
    /// What, and in which modes and rings.
    pub what: String,
    /// On the first.
    pub first: String,
    /// On the second.
    pub second: String,
}

/// What a comparison gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Both hosts in a line each.
    pub hosts: [String; 2],
    /// Is there no field in which the two differ, measured values included?
    pub equal: bool,
    /// What differs, but for measured values that differ less than they spread.
    pub differences: Vec<Difference>,
}

/// A cost differs where one is more than this many times the other, and by more cycles than the
/// one below: their spreads must be apart all the same.
const NOTABLE: f64 = 2.0;
const NOTABLE_CYCLES: f64 = 50.0;
const COSTS: &str = "costs";

/// Compares everything that was found.
pub fn compare(first: &Report, second: &Report) -> Comparison {
    let mut apart = apart(&facts::of(first), &facts::of(second));
    apart.extend(costs(first, second));
    Comparison {
        hosts: [first, second].map(host),
        equal: first == second,
        differences: grouped(apart),
    }
}

fn host(report: &Report) -> String {
    let host = &report.host;
    let leaks = match report.leaks.len() {
        0 => "no leaks".to_owned(),
        1 => "1 leak".to_owned(),
        n => format!("{n} leaks"),
    };
    format!("{leaks}: {} on Linux {}, {}", host.backend, host.kernel, host.processor)
}

/// One fact, as both have it.
struct Apart {
    topic: &'static str,
    whats: Vec<String>,
    places: Vec<String>,
    says: [String; 2],
}

/// The facts that are not the same, in the order of the topics.
fn apart(first: &[Fact], second: &[Fact]) -> Vec<Apart> {
    let key = |fact: &Fact| (fact.topic, fact.what.clone(), fact.place.clone());
    let of = |facts: &[Fact]| -> HashMap<_, String> {
        facts.iter().map(|fact| (key(fact), fact.says.clone())).collect()
    };
    let (old, new) = (of(first), of(second));
    let only_new = second.iter().filter(|fact| !old.contains_key(&key(fact)));
    let mut found = vec![];
    for fact in first.iter().chain(only_new) {
        let key = key(fact);
        let says = [&old, &new].map(|all| all.get(&key).cloned().unwrap_or("none".to_owned()));
        if says[0] != says[1] {
            let places = if fact.place.is_empty() { vec![] } else { vec![fact.place.clone()] };
            found.push(Apart { topic: fact.topic, whats: vec![fact.what.clone()], places, says });
        }
    }
    found.sort_by_key(|it| TOPICS.iter().position(|topic| *topic == it.topic));
    found
}

/// Joins the modes and rings of what differs in the same way, and then the names.
fn grouped(apart: Vec<Apart>) -> Vec<Difference> {
    let mut by_place: Vec<Apart> = vec![];
    for it in apart {
        let same = |other: &&mut Apart| {
            (other.topic, &other.whats, &other.says) == (it.topic, &it.whats, &it.says)
        };
        match by_place.iter_mut().find(same) {
            Some(other) => other.places.extend(it.places),
            None => by_place.push(it),
        }
    }
    let mut by_name: Vec<Apart> = vec![];
    for it in by_place {
        let same = |other: &&mut Apart| {
            !it.places.is_empty()
                && (other.topic, &other.places, &other.says) == (it.topic, &it.places, &it.says)
        };
        match by_name.iter_mut().find(same) {
            Some(other) => other.whats.extend(it.whats),
            None => by_name.push(it),
        }
    }
    let difference = |it: Apart| {
        let [first, second] = it.says;
        let names = it.whats.join(", ");
        let what = match &it.places[..] {
            [] => names,
            places => format!("{names} in {}", ranges(places)),
        };
        Difference { topic: it.topic.to_owned(), what, first, second }
    };
    by_name.into_iter().map(difference).collect()
}

/// Rings that follow each other: `prot/0 to 2`.
fn ranges(places: &[String]) -> String {
    let ring = |place: &str| {
        let (mode, ring) = place.split_once('/')?;
        Some((mode.to_owned(), ring.parse::<u8>().ok()?))
    };
    let mut parts: Vec<(String, Option<(String, u8)>)> = vec![];
    for place in places {
        match (parts.last_mut(), ring(place)) {
            (Some((text, Some((mode, last)))), Some((next_mode, next)))
                if *mode == next_mode && last.checked_add(1) == Some(next) =>
            {
                let start = text.split(" to ").next().unwrap_or(text).to_owned();
                (*text, *last) = (format!("{start} to {next}"), next);
            }
            (_, ring) => parts.push((place.clone(), ring)),
        }
    }
    let parts: Vec<_> = parts.into_iter().map(|(text, _)| text).collect();
    parts.join(", ")
}

/// What costs more on one than on the other, beyond what the measurements spread, or was measured
/// on one alone: the table of costs, and of each mode and ring what an instruction costs that is dealt
/// with in one way.
fn costs(a: &Report, b: &Report) -> Vec<Apart> {
    let mut found = vec![];
    let mut note = |what: String, place: &str, sides: [Option<Spread>; 2]| {
        if are_apart(sides) {
            let cycles = |it: Spread| format!("{:.0} cycles", it.middle);
            let says = sides.map(|it| it.map_or("none".to_owned(), cycles));
            let places = vec![place.to_owned()];
            found.push(Apart { topic: COSTS, whats: vec![what], places, says });
        }
    };
    let of = |report: &Report, cost: &Cost| {
        let same = |it: &&Cost| (&it.name, &it.context) == (&cost.name, &cost.context);
        report.costs.iter().find(same).map(Spread::of)
    };
    let only_b = b.costs.iter().filter(|cost| of(a, cost).is_none());
    for cost in a.costs.iter().chain(only_b) {
        note(cost.name.clone(), &cost.context, [a, b].map(|report| of(report, cost)));
    }
    for context in &a.contexts {
        for ran in [Ran::Direct, Ran::Emulated, Ran::TrappedKvm, Ran::TrappedUser] {
            let sides = [a, b].map(|report| Spread::pooled(report, &context.name, ran));
            // That one has none of a kind its cells have told.
            if sides.iter().all(Option::is_some) {
                note(format!("what {}", ran.words()), &context.name, sides);
            }
        }
    }
    found
}

fn are_apart(sides: [Option<Spread>; 2]) -> bool {
    match sides {
        [Some(one), Some(other)] => one.is_apart(other),
        [one, other] => one.is_some() != other.is_some(),
    }
}

/// A measured value, and the half of its measurements that lies around it.
#[derive(Clone, Copy, Debug)]
struct Spread {
    low: f64,
    middle: f64,
    high: f64,
}

impl Spread {
    fn of(cost: &Cost) -> Self {
        Self { low: cost.spread[0], middle: cost.cycles, high: cost.spread[1] }
    }

    /// Of all instructions that were dealt with in one way in a mode and a ring.
    fn pooled(report: &Report, context: &str, ran: Ran) -> Option<Self> {
        let cells = report.instructions.iter().flat_map(|row| &row.cells);
        let cells = cells.filter(|cell| cell.context == context && cell.ran == ran);
        let mut cycles: Vec<f64> = cells.filter_map(|cell| cell.cycles).collect();
        cycles.sort_by(f64::total_cmp);
        let at = |quarters: usize| cycles.get(cycles.len() * quarters / 4).copied();
        Some(Self { low: at(1)?, middle: at(2)?, high: at(3)? })
    }

    fn is_apart(self, other: Self) -> bool {
        let (less, more) = if self.middle < other.middle { (self, other) } else { (other, self) };
        let notable = more.middle > less.middle.max(1.0) * NOTABLE
            && more.middle > less.middle + NOTABLE_CYCLES;
        notable && less.high < more.low
    }
}
