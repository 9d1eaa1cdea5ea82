//! Which of the tests run, and in which order.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Error;
use super::history::History;
use super::test::{BETWEEN, Test};

/// Why a test does not run that runs only when it is asked for.
const MANUAL: &str = "runs only when asked for: --filter =NAME or tag:WORD";

/// One of so many equal parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    of: u32,
}

impl std::str::FromStr for Shard {
    type Err = String;

    /// `i/n`, 1 to n.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no shard: I/N, with I from 1 to N, as in 1/4");
        let (index, of) = text.split_once('/').ok_or_else(bad)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
        let shard = Self { index: number(index)?, of: number(of)? };
        if shard.index == 0 || shard.index > shard.of {
            return Err(bad());
        }
        Ok(shard)
    }
}

/// A pattern: a part of a name; with `*` or `?` in it the whole name; `tag:WORD` a tag; `!` before
/// it all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// As it was typed.
    text: String,
    negated: bool,
    pattern: Pattern,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Part(String),
    Glob(String),
    Exact(String),
    Tag(String),
}

impl std::str::FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (negated, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
        if rest.is_empty() {
            return Err("a filter has no words: part of a name, a glob, tag:WORD".to_owned());
        }
        let pattern = if let Some(tag) = rest.strip_prefix("tag:") {
            Pattern::Tag(tag.to_owned())
        } else if let Some(name) = rest.strip_prefix('=') {
            Pattern::Exact(name.to_owned())
        } else if rest.contains(['*', '?']) {
            Pattern::Glob(rest.to_owned())
        } else {
            Pattern::Part(rest.to_owned())
        };
        Ok(Self { text: text.to_owned(), negated, pattern })
    }
}

impl Filter {
    /// Does it ask for something by name? A part of a name may be an accident.
    fn names(&self) -> bool {
        matches!(self.pattern, Pattern::Exact(_) | Pattern::Tag(_))
    }

    fn fits(&self, test: &Test) -> bool {
        match &self.pattern {
            Pattern::Part(part) => test.name.contains(part.as_str()),
            Pattern::Glob(glob) => glob_fits(glob.as_bytes(), test.name.as_bytes()),
            Pattern::Exact(name) => test.name == *name,
            Pattern::Tag(tag) => glob_or_equal(tag, &test.tags),
        }
    }
}

/// Is any test of an image asked for, as far as that can be told without knowing its tests?
fn may_fit(filters: &[&Filter], image: &Test) -> bool {
    let may = |filter: &&Filter| match &filter.pattern {
        Pattern::Tag(_) => filter.fits(image),
        Pattern::Exact(name) => name
            .strip_prefix(&image.name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(BETWEEN)),
        Pattern::Part(_) | Pattern::Glob(_) => true,
    };
    filters.is_empty() || filters.iter().any(may)
}

fn glob_or_equal(pattern: &str, words: &[String]) -> bool {
    words.iter().any(|word| glob_fits(pattern.as_bytes(), word.as_bytes()))
}

/// `*` stands for any bytes, `?` for one.
fn glob_fits(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    // Where the last star stands, and what it has swallowed up to.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => (g, t) = (g + 1, t + 1),
            _ => {
                let Some((at, swallowed)) = star else { return false };
                star = Some((at, swallowed + 1));
                (g, t) = (at + 1, swallowed + 1);
            }
        }
    }
    glob[g..].iter().all(|c| *c == b'*')
}

/// Those that any plain filter and no negated one fits, and images whose tests nobody knows where
/// one of theirs may be asked for.
///
/// # Errors
/// None fits, or nothing is there of what a filter asks for by its name.
pub fn choose(tests: Vec<Test>, filters: &[Filter]) -> Result<Vec<Test>, Error> {
    let (negated, plain): (Vec<_>, Vec<_>) = filters.iter().partition(|it| it.negated);
    let fits = |filter: &Filter, test: &Test| match test.is_unlisted() {
        true => may_fit(&[filter], test),
        false => filter.fits(test),
    };
    let in_vain =
        |filter: &&&Filter| filter.names() && !tests.iter().any(|test| fits(filter, test));
    if let Some(filter) = plain.iter().find(in_vain) {
        return Err(Error::NoTest(format!(
            "no test is what --filter {} names (--list prints their names)",
            filter.text
        )));
    }
    let count = tests.len();
    let chosen = tests.into_iter().filter(|test| {
        let asked = plain.is_empty() || plain.iter().any(|it| fits(it, test));
        asked && !negated.iter().any(|it| it.fits(test))
    });
    let asked_for = |test: &Test| plain.iter().any(|it| it.names() && it.fits(test));
    let chosen = chosen.map(|mut test| {
        if test.manual && !asked_for(&test) {
            test.skip.get_or_insert_with(|| MANUAL.to_owned());
        }
        test
    });
    let chosen: Vec<_> = chosen.collect();
    if chosen.is_empty() {
        return Err(Error::NoTest(format!("none of the {count} tests fits what was asked for")));
    }
    Ok(chosen)
}

/// Those of a shard. A test's shard hangs on its place among the chosen: all shards together are
/// all tests, and none is in two. Only what may be otherwise on another machine is in each, and
/// counts for none: images whose tests nobody knows.
pub fn part(tests: Vec<Test>, shard: Shard) -> Vec<Test> {
    let mut place = 0;
    let in_shard = |test: &Test| {
        if test.is_in_every_shard() {
            return true;
        }
        place += 1;
        (place - 1) % shard.of == shard.index - 1
    };
    tests.into_iter().filter(in_shard).collect()
}

/// The longest first: the shortest at the end fill the last gaps. The tests of one image stay
/// together, for a worker keeps one image's machine at a time.
pub fn order(tests: Vec<Test>, history: &History) -> Vec<Arc<Test>> {
    let mut images: BTreeMap<String, (Duration, Vec<Arc<Test>>)> = BTreeMap::new();
    for test in tests {
        let (time, members) = images.entry(test.image_name().to_owned()).or_default();
        *time += history.expected(&test.name);
        members.push(Arc::new(test));
    }
    let mut images: Vec<_> = images.into_values().collect();
    images.sort_by_key(|(time, _)| Reverse(*time));
    for (_, members) in &mut images {
        members.sort_by_key(|test| Reverse(history.expected(&test.name)));
    }
    images.into_iter().flat_map(|(_, members)| members).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(tests: Vec<Test>, filters: &[Filter], shard: Option<Shard>) -> Vec<Test> {
        let chosen = choose(tests, filters).unwrap_or_default();
        shard.map_or_else(|| chosen.clone(), |shard| part(chosen.clone(), shard))
    }

    fn names(filters: &[&str], shard: Option<&str>) -> Vec<String> {
        let tests = ["boot", "mm::map", "mm::unmap", "net::arp"].map(|name| {
            let tags = if name.starts_with("mm") { vec!["memory".to_owned()] } else { vec![] };
            Test { tags, ..Test::for_tests(name, 1) }
        });
        let filters: Vec<_> = filters.iter().map(|text| text.parse().unwrap()).collect();
        let shard = shard.map(|text| text.parse().unwrap());
        select(tests.into(), &filters, shard).into_iter().map(|test| test.name).collect()
    }

    #[test]
    fn filters() {
        assert_eq!(names(&[], None).len(), 4);
        assert_eq!(names(&["map"], None), ["mm::map", "mm::unmap"]);
        assert_eq!(names(&["*::map"], None), ["mm::map"]);
        assert_eq!(names(&["=boot", "net*"], None), ["boot", "net::arp"]);
        assert_eq!(names(&["tag:mem*", "!unmap"], None), ["mm::map"]);
        assert_eq!(names(&["!tag:memory"], None), ["boot", "net::arp"]);
        assert_eq!(names(&["b??t"], None), ["boot"]);
        assert!(names(&["B*"], None).is_empty());
        assert!("".parse::<Filter>().is_err() && "!".parse::<Filter>().is_err());
    }

    #[test]
    fn an_image_whose_tests_nobody_knows_is_in_every_choice_that_they_may_be_in() {
        let refusal = crate::verdict::Refusal::Host;
        let verdict = crate::verdict::Verdict::Refused { refusal, message: String::new() };
        let expect = crate::runner::Expect::Success;
        let ended = vec![crate::runner::Attempt::new(&verdict, &expect, Duration::ZERO)];
        let chosen = |filter: &str, shard: &str| {
            let tests = ["a::1", "b", "c"].map(|name| {
                let ended = if name == "b" { ended.clone() } else { Vec::new() };
                Test { ended, ..Test::for_tests(name, 1) }
            });
            let chosen = select(tests.into(), &[filter.parse().unwrap()], shard.parse().ok());
            chosen.into_iter().map(|test| test.name).collect::<Vec<_>>()
        };
        assert_eq!(chosen("net", ""), ["b"]);
        assert_eq!(chosen("=b::net", ""), ["b"]);
        assert_eq!(chosen("=a::1", ""), ["a::1"]);
        assert!(chosen("tag:x", "").is_empty());
        assert_eq!(chosen("!x", "1/3"), ["a::1", "b"]);
        assert_eq!(chosen("!x", "2/3"), ["b", "c"]);
        assert_eq!(chosen("!x", "3/3"), ["b"]);
    }

    #[test]
    fn what_is_named_has_to_be_there() {
        assert_eq!(names(&["=boot", "tag:memory"], None).len(), 3);
        for filters in [["=boot", "=bot"], ["=boot", "tag:memry"], ["tag:memory", "=mm"]] {
            assert!(names(&filters, None).is_empty(), "{filters:?}");
        }
        assert_eq!(names(&["=boot", "part of none"], None), ["boot"]);
    }

    #[test]
    fn globs() {
        for (glob, text, fits) in [
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("**a", "ba", true),
            ("?", "", false),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(glob_fits(glob.as_bytes(), text.as_bytes()), fits, "{glob} {text}");
        }
    }

    #[test]
    fn shards_are_a_partition() {
        for of in 1..=6 {
            let mut all: Vec<_> =
                (1..=of).flat_map(|i| names(&[], Some(&format!("{i}/{of}")))).collect();
            all.sort();
            assert_eq!(all, names(&[], None));
        }
        for bad in ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1/4294967296"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }
}
