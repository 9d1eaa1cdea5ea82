//! What a vCPU counts: its exits by kind, and what nobody claimed.

use serde::Serialize;

use crate::kvm::ExitKind;

/// Places of unclaimed accesses that are told apart; a guest can make no more of them.
const SITES: usize = 64;

/// What nobody claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // named after the accesses
pub enum UnclaimedKind {
    PioRead,
    PioWrite,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    Hypercall,
}

impl UnclaimedKind {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::PioRead => "pio_read",
            Self::PioWrite => "pio_write",
            Self::MmioRead => "mmio_read",
            Self::MmioWrite => "mmio_write",
            Self::MsrRead => "msr_read",
            Self::MsrWrite => "msr_write",
            Self::Hypercall => "hypercall",
        }
    }
}

/// One kind of access to one address that nobody claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Unclaimed {
    /// What it was.
    pub kind: UnclaimedKind,
    /// Port, guest-physical address, MSR or hypercall number.
    pub address: u64,
    /// RIP as of the first time.
    pub rip: u64,
    /// How often.
    pub count: u64,
}

/// A vCPU's counters.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    exits: [u64; ExitKind::NAMES.len()],
    sites: Vec<Unclaimed>,
    /// Unclaimed accesses that found no room in `sites`.
    elsewhere: u64,
}

impl Counts {
    /// Room for all it will ever hold: the exit path allocates nothing.
    pub(super) fn new() -> Self {
        Self { sites: Vec::with_capacity(SITES), ..Self::default() }
    }

    #[inline]
    pub(super) fn exit(&mut self, kind: ExitKind) {
        self.exits[kind as usize] += 1;
    }

    #[cold]
    pub(super) fn unclaimed(&mut self, kind: UnclaimedKind, address: u64, rip: u64) {
        let same = |site: &&mut Unclaimed| site.kind == kind && site.address == address;
        if let Some(site) = self.sites.iter_mut().find(same) {
            site.count += 1;
        } else if self.sites.len() < SITES {
            self.sites.push(Unclaimed { kind, address, rip, count: 1 });
        } else {
            self.elsewhere += 1;
        }
    }

    /// Adds another vCPU's counters, or those of another part of the run.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.exits.iter_mut().zip(other.exits) {
            *sum += more;
        }
        for site in &other.sites {
            let same = |own: &&mut Unclaimed| own.kind == site.kind && own.address == site.address;
            match self.sites.iter_mut().find(same) {
                Some(own) => own.count += site.count,
                None => self.sites.push(*site),
            }
        }
        self.elsewhere += other.elsewhere;
    }

    /// Exits by kind, those that happened.
    pub fn exits(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ExitKind::NAMES.into_iter().zip(self.exits).filter(|(_, count)| *count > 0)
    }

    /// The same of some kinds alone.
    pub fn exits_of(
        &self,
        which: fn(ExitKind) -> bool,
    ) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let kinds = ExitKind::ALL.into_iter().zip(self.exits);
        let some = kinds.filter(move |(kind, count)| *count > 0 && which(*kind));
        some.map(|(kind, count)| (kind.name(), count))
    }

    /// Where nobody claimed an access: at most 64 places a vCPU.
    pub fn sites(&self) -> &[Unclaimed] {
        &self.sites
    }

    /// Unclaimed accesses in all.
    pub fn unclaimed_total(&self) -> u64 {
        self.elsewhere + self.sites.iter().map(|site| site.count).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unclaimed_places_are_bounded_and_all_are_counted() {
        let mut counts = Counts::new();
        for port in 0..1000 {
            counts.unclaimed(UnclaimedKind::PioRead, port, 0x1000);
            counts.unclaimed(UnclaimedKind::PioRead, port, 0x2000);
        }
        assert_eq!(counts.sites().len(), SITES);
        assert_eq!(
            counts.sites()[0],
            Unclaimed { kind: UnclaimedKind::PioRead, address: 0, rip: 0x1000, count: 2 }
        );
        assert_eq!(counts.unclaimed_total(), 2000);
    }
}
