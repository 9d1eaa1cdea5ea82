//! The guests that ringfence carries: the rows of `guests/LIST`, each with its image, what to run
//! it with and what to expect. The command line lists and runs them (`@name`), the integration
//! tests run them all. Data only: knows no machine and no command line, and starts nothing.

use std::time::Duration;

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// One row of `guests/LIST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Unique; `@name` on the command line stands for it.
    pub name: &'static str,
    /// The bytes of the image file. Rows that differ in their arguments only share one.
    pub image: &'static [u8],
    /// Arguments of `ringfence run` that the image needs. `@NAME` where a file is expected is the
    /// image of another row.
    pub args: &'static [&'static str],
    /// What the guest reads on its serial line; empty for most.
    pub input: &'static str,
    /// The exit status that the run must end with.
    pub verdict: u8,
    /// Texts that its serial output must contain.
    pub says: &'static [&'static str],
    /// Time limit on the slowest backend; the `--timeout` where `args` has none of its own.
    pub limit: Duration,
    /// Whether the row is in the set for the slow VT-x rig.
    pub small: bool,
    /// Backends (`kvm_pvm`, `kvm_amd`, `kvm_intel`) that it cannot run on, each with the reason.
    pub not_on: &'static [(&'static str, &'static str)],
    /// What it shows, in one line.
    pub about: &'static str,
}

impl Guest {
    /// Why the guest cannot run on `backend`; `None` where it can.
    ///
    /// ```
    /// let hello = ringfence::guests::find("hello-long").unwrap();
    /// assert_eq!(hello.skip_on("kvm_amd"), None);
    /// ```
    pub fn skip_on(&self, backend: &str) -> Option<&'static str> {
        self.not_on.iter().find(|(name, _)| *name == backend).map(|(_, reason)| *reason)
    }
}

/// The guest of that name, written with or without the leading `@`.
///
/// ```
/// let hello = ringfence::guests::find("@hello-real").unwrap();
/// assert_eq!(hello.image.len(), 512);
/// assert_eq!(hello.image[510..], [0x55, 0xAA]);
/// ```
pub fn find(name: &str) -> Option<&'static Guest> {
    let name = name.strip_prefix('@').unwrap_or(name);
    GUESTS.iter().find(|guest| guest.name == name)
}

#[cfg(test)]
#[path = "../guests/list.rs"]
mod list;

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = include_str!("../guests/LIST");

    #[test]
    fn the_table_is_the_list() {
        let rows = list::parse(LIST).unwrap();
        assert_eq!(rows.len(), GUESTS.len());
        for (row, guest) in rows.iter().zip(GUESTS) {
            assert_eq!(row.name, guest.name);
            assert_eq!(row.args, guest.args);
            assert_eq!(row.verdict, guest.verdict);
            assert_eq!(row.says, guest.says);
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        for guest in GUESTS {
            let named: Vec<_> = GUESTS.iter().filter(|other| other.name == guest.name).collect();
            assert_eq!(named, [guest]);
            assert_eq!(find(guest.name), Some(guest));
        }
        assert_eq!(find("no-such-guest"), None);
    }

    #[test]
    fn images_are_there_and_small() {
        let images: std::collections::HashMap<_, _> =
            GUESTS.iter().map(|guest| (guest.image.as_ptr(), guest.image.len())).collect();
        let total: usize = images.values().sum();
        assert!(GUESTS.iter().all(|guest| !guest.image.is_empty()));
        // The sample suite with its 200 tests is the largest.
        assert!(GUESTS.iter().all(|guest| guest.image.len() <= 80 << 10));
        assert!(total <= 480 << 10, "{total} bytes");
    }

    #[test]
    fn the_boot_sector_is_one() {
        let image = find("hello-real").unwrap().image;
        assert_eq!((image.len(), &image[510..]), (512, &[0x55, 0xAA][..]));
    }

    #[test]
    fn every_at_name_in_the_arguments_is_a_guest() {
        for guest in GUESTS {
            for arg in guest.args.iter().filter(|arg| arg.starts_with('@')) {
                let name = arg.split(',').next().unwrap();
                assert!(find(name).is_some(), "{}: {arg}", guest.name);
            }
        }
    }

    fn refused(line: &str) -> String {
        list::parse(line).unwrap_err()
    }

    #[test]
    fn bad_rows_are_refused_with_their_line() {
        let good = "a | flat32: a.c | x \"y z\" | | 0 | hi; ho | 1 | small | kvm_pvm: slow | about";
        let row = &list::parse(good).unwrap()[0];
        assert_eq!(row.args, ["x", "y z"]);
        assert_eq!(row.says, ["hi", "ho"]);
        assert_eq!(row.not_on, [("kvm_pvm".to_owned(), "slow".to_owned())]);
        assert_eq!(refused("# head\na | b"), "line 2: 2 columns instead of 10");
        assert_eq!(refused(&format!("{good}\n{good}")), "line 2: a is there twice");
        assert_eq!(refused(&good.replace("flat32: a.c", "@b")), "line 1: no row b above");
        assert_eq!(refused(&good.replace("| 0 |", "| 256 |")), "line 1: verdict \"256\"");
        assert_eq!(refused(&good.replace("z\"", "z")), "line 1: open quote in x \"y z");
        assert!(refused(&good.replace("kvm_pvm", "kvm_arm")).contains("a known backend"));
    }
}
