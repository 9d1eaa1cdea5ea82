//! A guest's LLVM profile counters, found by its image's sections and read out of its memory,
//! as a `.profraw` file: `llvm-cov` then reports on a kernel that writes no file itself.
//!
//! Called by `machine` with an image and guest memory; runs nothing. The format is
//! compiler-rt's (profile/InstrProfData.inc), raw versions 8 (LLVM 14), 9 (18) and 10 (19).

use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol};
use vm_memory::{Bytes, GuestAddress};

use super::functions::{Alias, aliases};
use crate::mem::GuestMemory;

/// Why there is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is nothing to read.
    #[error(
        "the image has no LLVM profile: compile it with -fprofile-instr-generate -fcoverage-mapping (clang) or -C instrument-coverage (rustc), and keep its sections __llvm_prf_* and its symbols"
    )]
    NotInstrumented,
    /// Its compiler's format.
    #[error(
        "the image's profile has version {0} of LLVM's raw format; ringfence writes 8, 9 and 10"
    )]
    Version(u64),
    /// A kind of counter.
    #[error(
        "the image's counters are of a kind that is not supported (flags {0:#x} of __llvm_profile_raw_version)"
    )]
    Kind(u64),
    /// Its parts do not go together.
    #[error("the image's section {0} is damaged")]
    Damaged(&'static str),
    /// The counters are not where they should be.
    #[error("the image's counters are not in the guest's memory at {0:#x}")]
    NoMemory(u64),
}

/// What a data record is like in one version: its bytes, where in it the number of counters
/// stands (32 bits) and, behind that, the numbers of value sites (16 bits each).
struct Version {
    number: u64,
    is_64: bool,
    record: usize,
    counters: usize,
    kinds: usize,
}

/// The newest first: an image itself tells 8 from the others, but not 9 from 10.
#[rustfmt::skip]
const VERSIONS: &[Version] = &[
    Version { number: 10, is_64: true, record: 64, counters: 48, kinds: 3 },
    Version { number: 9, is_64: true, record: 64, counters: 48, kinds: 2 },
    Version { number: 8, is_64: true, record: 48, counters: 40, kinds: 2 },
    Version { number: 10, is_64: false, record: 48, counters: 32, kinds: 3 },
    Version { number: 9, is_64: false, record: 48, counters: 32, kinds: 2 },
    Version { number: 8, is_64: false, record: 40, counters: 28, kinds: 2 },
];

/// Where in every record the address of the counters stands, relative to the record.
const POINTER: usize = 16;

/// The low bits of `__llvm_profile_raw_version` are the number, the others say how counters came
/// about.
const VERSION_MASK: u64 = (1 << 56) - 1;
/// Counters of one byte, and none at all (VARIANT_MASK_BYTE_COVERAGE, _FUNCTION_ENTRY_ONLY).
const UNSUPPORTED: u64 = 1 << 60 | 1 << 61;

const DATA: &str = "__llvm_prf_data";
const COUNTERS: &str = "__llvm_prf_cnts";
const BITMAP: &str = "__llvm_prf_bits";
const NAMES: &str = "__llvm_prf_names";
const RAW_VERSION: &str = "__llvm_profile_raw_version";

/// Bytes of a counter; the file's parts begin at multiples of it.
const WORD: usize = 8;

/// A profile: what the image says of itself, and the counters as they stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Header and data records.
    head: Vec<u8>,
    counters: Vec<u64>,
    /// Of conditions (MC/DC), filled up to a multiple of [`WORD`].
    bitmap: Vec<u8>,
    /// Names, filled up.
    tail: Vec<u8>,
}

impl Profile {
    /// Reads the counters of `image` as they stand in `memory`.
    ///
    /// # Errors
    /// Where the image has none, or none that are understood.
    pub fn read(image: &[u8], memory: &GuestMemory) -> Result<Self, Error> {
        let file = object::File::parse(image).map_err(|_| Error::NotInstrumented)?;
        let counters = part(&file, COUNTERS).ok_or(Error::NotInstrumented)?;
        let data = part(&file, DATA).ok_or(Error::NotInstrumented)?;
        let names = part(&file, NAMES).ok_or(Error::NotInstrumented)?;
        let bitmap = part(&file, BITMAP).unwrap_or(Part { address: data.address, len: 0 });
        let loads = aliases(image);
        let parts = Parts { data, counters, bitmap, names };
        let (version, raw, records) = records(&file, &parts)?;
        let mut head = header(raw, version, &parts);
        head.extend(records);
        let words = guest_bytes(memory, &loads, counters)?;
        Ok(Self {
            head,
            counters: words.chunks_exact(WORD).map(word).collect(),
            bitmap: filled(guest_bytes(memory, &loads, bitmap)?),
            tail: filled(names.in_file(&file).ok_or(Error::Damaged(NAMES))?.to_vec()),
        })
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let counters = self.counters.iter().flat_map(|it| it.to_le_bytes());
        let mut bytes = self.head.clone();
        bytes.extend(counters);
        bytes.extend(&self.bitmap);
        bytes.extend(&self.tail);
        bytes
    }

    /// What [`Self::to_bytes`] wrote; `None` where it did not.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| Some(word(bytes.get(index * WORD..(index + 1) * WORD)?));
        let number = field(1)? & VERSION_MASK;
        let is_64 = |it: &&Version| it.number == number && field(0) == Some(it.magic());
        let version = VERSIONS.iter().find(is_64)?;
        let times = |count: u64, size: usize| usize::try_from(count).ok()?.checked_mul(size);
        let head = (version.words() * WORD).checked_add(times(field(3)?, version.record)?)?;
        let counters = head.checked_add(times(field(5)?, WORD)?)?;
        let bitmap = if number >= 9 { field(7)?.checked_add(field(8)?)? } else { 0 };
        let tail = counters.checked_add(times(bitmap, 1)?)?;
        Some(Self {
            head: bytes.get(..head)?.to_vec(),
            counters: bytes.get(head..counters)?.chunks_exact(WORD).map(word).collect(),
            bitmap: bytes.get(counters..tail)?.to_vec(),
            tail: bytes.get(tail..)?.to_vec(),
        })
    }

    /// Adds what another run of the same image counted; false where it is of another image.
    pub fn add(&mut self, other: &Self) -> bool {
        let of = |it: &Self| (it.counters.len(), it.bitmap.len());
        if self.head != other.head || self.tail != other.tail || of(self) != of(other) {
            return false;
        }
        for (counter, other) in self.counters.iter_mut().zip(&other.counters) {
            *counter = counter.saturating_add(*other);
        }
        self.bitmap.iter_mut().zip(&other.bitmap).for_each(|(bits, other)| *bits |= other);
        true
    }

    /// A number that another build of the image hardly has: FNV-1a of all but the counters.
    pub fn signature(&self) -> u64 {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        self.head.iter().chain(&self.tail).fold(0xCBF2_9CE4_8422_2325, step)
    }
}

/// A section, or what two symbols of the linker's enclose.
#[derive(Clone, Copy)]
struct Part {
    address: u64,
    len: u64,
}

struct Parts {
    data: Part,
    counters: Part,
    bitmap: Part,
    names: Part,
}

impl Part {
    fn in_file<'a>(self, file: &object::File<'a>) -> Option<&'a [u8]> {
        file.segments().find_map(|it| it.data_range(self.address, self.len).ok().flatten())
    }
}

/// By section, or by symbols where a linker script has put it into another.
fn part(file: &object::File<'_>, name: &str) -> Option<Part> {
    if let Some(section) = file.section_by_name(name) {
        let part = Part { address: section.address(), len: section.size() };
        return Some(part).filter(|part| part.len > 0);
    }
    let at = |prefix: &str| Some(symbol(file, &format!("{prefix}{name}"))?.address());
    let (start, stop) = (at("__start_")?, at("__stop_")?);
    Some(Part { address: start, len: stop.checked_sub(start).filter(|len| *len > 0)? })
}

fn symbol<'data, 'file>(
    file: &'file object::File<'data>,
    name: &str,
) -> Option<object::Symbol<'data, 'file>> {
    file.symbols().find(|it| it.name() == Ok(name) && it.is_definition())
}

/// What the image says of its version, if it does: the compiler's runtime library would.
fn raw_version(file: &object::File<'_>) -> Result<Option<u64>, Error> {
    let Some(symbol) = symbol(file, RAW_VERSION) else { return Ok(None) };
    let bytes = Part { address: symbol.address(), len: WORD as u64 }.in_file(file);
    let raw = word(bytes.ok_or(Error::Damaged(RAW_VERSION))?);
    match raw & VERSION_MASK {
        _ if raw & UNSUPPORTED != 0 => Err(Error::Kind(raw & !VERSION_MASK)),
        8..=10 => Ok(Some(raw)),
        other => Err(Error::Version(other)),
    }
}

/// INSTR_PROF_RAW_HEADER, all of 64 bits each.
fn header(raw: u64, version: &Version, parts: &Parts) -> Vec<u8> {
    let count = parts.data.len.div_ceil(version.record as u64);
    let from_data = |part: Part| part.address.wrapping_sub(parts.data.address) & version.mask();
    let bitmap_padding = parts.bitmap.len.wrapping_neg() % WORD as u64;
    // The magic, the version, binary ids, data records, padding, counters, padding.
    let mut words = vec![version.magic(), raw, 0, count, 0];
    words.extend([parts.counters.len / WORD as u64, 0]);
    if version.number >= 9 {
        words.extend([parts.bitmap.len, bitmap_padding]);
    }
    words.extend([parts.names.len, from_data(parts.counters)]);
    if version.number >= 9 {
        words.push(from_data(parts.bitmap));
    }
    words.push(parts.names.address);
    if version.number >= 10 {
        words.extend([0, 0]); // virtual tables, and their names
    }
    words.push(version.kinds as u64 - 1);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The version, the same with its flags, and the data records without value sites: no values
/// follow in the file.
fn records(
    file: &object::File<'_>,
    parts: &Parts,
) -> Result<(&'static Version, u64, Vec<u8>), Error> {
    let said = raw_version(file)?;
    let mut records = parts.data.in_file(file).ok_or(Error::Damaged(DATA))?.to_vec();
    let may_be = |it: &&Version| {
        it.is_64 == file.is_64()
            && said.is_none_or(|raw| raw & VERSION_MASK == it.number)
            && it.fits(&records, parts)
    };
    let version = VERSIONS.iter().find(may_be).ok_or(Error::Damaged(DATA))?;
    // The last may lack what fills it up.
    records.resize(records.len().next_multiple_of(version.record), 0);
    let sites = version.counters + 4..version.counters + 4 + 2 * version.kinds;
    records.chunks_exact_mut(version.record).for_each(|it| it[sites.clone()].fill(0));
    Ok((version, said.unwrap_or(version.number), records))
}

impl Version {
    fn magic(&self) -> u64 {
        let letter = if self.is_64 { b'r' } else { b'R' };
        u64::from_be_bytes([0xFF, b'l', b'p', b'r', b'o', b'f', letter, 0x81])
    }

    /// Words of the file's header.
    fn words(&self) -> usize {
        match self.number {
            8 => 11,
            9 => 14,
            _ => 16,
        }
    }

    /// The bits of an address.
    fn mask(&self) -> u64 {
        if self.is_64 { u64::MAX } else { u32::MAX.into() }
    }

    /// Do the records, read this way, point at the counters, and use them all?
    fn fits(&self, records: &[u8], parts: &Parts) -> bool {
        let mut count = 0;
        for (record, address) in records.chunks(self.record).zip((0..).step_by(self.record)) {
            let Some(number) = record.get(self.counters..self.counters + 4) else { return false };
            let own = word(number) * WORD as u64;
            let from_record = word(&record[POINTER..]);
            let at = parts.data.address.wrapping_add(address).wrapping_add(from_record);
            let offset = at.wrapping_sub(parts.counters.address) & self.mask();
            if offset > parts.counters.len || own > parts.counters.len - offset {
                return false;
            }
            count += own;
        }
        count == parts.counters.len
    }
}

/// What lies at a link address in guest memory.
fn guest_bytes(memory: &GuestMemory, loads: &[Alias], part: Part) -> Result<Vec<u8>, Error> {
    let load = loads.iter().find(|it| part.address.wrapping_sub(it.linked) < it.len);
    let at = load
        .map_or(part.address, |it| part.address.wrapping_sub(it.linked).wrapping_add(it.loaded));
    let lacks = |_| Error::NoMemory(at);
    // A damaged size must not make room for more than there is.
    let end = at.checked_add(part.len).ok_or(Error::NoMemory(at))?;
    if part.len > 0 {
        memory.read_obj::<u8>(GuestAddress(end - 1)).map_err(lacks)?;
    }
    let mut bytes = vec![0; part.len as usize];
    memory.read_slice(&mut bytes, GuestAddress(at)).map_err(lacks)?;
    Ok(bytes)
}

fn filled(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(WORD), 0);
    bytes
}

/// The first eight bytes; missing ones are 0.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; WORD];
    word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem;

    const LINK: u64 = 0xFFFF_FFFF_8010_0000;
    const LOAD: u64 = 0x10_0000;
    const NAME: &[u8] = b"\x04\x00main";

    /// An ELF64 file with one segment that holds data records, counters and a name.
    struct Image {
        record: usize,
        counters_at: usize,
        counters: u32,
    }

    const NEW: Image = Image { record: 64, counters_at: 48, counters: 2 };
    const OLD: Image = Image { record: 48, counters_at: 40, counters: 2 };

    impl Image {
        /// Where the segment's bytes begin in the file.
        const SEGMENT: usize = 120;

        fn data(&self) -> Vec<u8> {
            let mut data = vec![0xEE; 2 * self.record];
            for (i, record) in data.chunks_exact_mut(self.record).enumerate() {
                // The counters lie behind the records, one function's after the other's.
                let at = 2 * self.record + i * WORD * self.counters as usize - i * self.record;
                record[POINTER..POINTER + WORD].copy_from_slice(&(at as u64).to_le_bytes());
                record[self.counters_at..][..4].copy_from_slice(&self.counters.to_le_bytes());
            }
            data
        }

        /// Offsets in the segment: counters, names, the end.
        fn offsets(&self) -> [usize; 3] {
            let counters = 2 * self.record;
            let names = counters + 2 * WORD * self.counters as usize;
            [counters, names, names + NAME.len()]
        }

        fn file(&self) -> Vec<u8> {
            let [counters, names, end] = self.offsets();
            let mut segment = self.data();
            segment.resize(names, 0);
            segment.extend(NAME);
            let strings = [DATA, COUNTERS, NAMES, ".shstrtab"].map(|name| format!("{name}\0"));
            let strings = format!("\0{}", strings.concat());
            let sections_at = Self::SEGMENT + end + strings.len();
            let mut file = b"\x7FELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3E\0\x01\0\0\0".to_vec();
            [LINK, 64, sections_at as u64].iter().for_each(|it| file.extend(it.to_le_bytes()));
            file.extend(0_u32.to_le_bytes());
            [64_u16, 56, 1, 64, 5, 4].iter().for_each(|it| file.extend(it.to_le_bytes()));
            [1_u32, 7].iter().for_each(|it| file.extend(it.to_le_bytes()));
            let len = end as u64;
            [Self::SEGMENT as u64, LINK, LOAD, len, len, 8]
                .iter()
                .for_each(|it| file.extend(it.to_le_bytes()));
            file.extend(&segment);
            file.extend(strings.as_bytes());
            let name = |text: &str| strings.find(&format!("{text}\0")).unwrap() as u32;
            file.extend([0; 64]);
            for (text, from, to) in
                [(DATA, 0, counters), (COUNTERS, counters, names), (NAMES, names, end)]
            {
                section(&mut file, name(text), LINK + from as u64, Self::SEGMENT + from, to - from);
            }
            section(&mut file, name(".shstrtab"), 0, Self::SEGMENT + end, strings.len());
            file
        }

        /// Guest memory in which the counters stand at 1, 2, ...
        fn memory(&self) -> GuestMemory {
            let memory = mem::create(4 << 20).unwrap();
            for i in 0..2 * u64::from(self.counters) {
                let at = LOAD + self.offsets()[0] as u64 + i * WORD as u64;
                memory.write_obj(i + 1, GuestAddress(at)).unwrap();
            }
            memory
        }
    }

    fn section(file: &mut Vec<u8>, name: u32, address: u64, offset: usize, len: usize) {
        let kind = if address == 0 { 3_u32 } else { 1 };
        [name, kind].iter().for_each(|it| file.extend(it.to_le_bytes()));
        [2, address, offset as u64, len as u64, 0, 1, 0]
            .iter()
            .for_each(|it: &u64| file.extend(it.to_le_bytes()));
    }

    fn words(bytes: &[u8], range: std::ops::Range<usize>) -> Vec<u64> {
        bytes.chunks(WORD).map(word).collect::<Vec<_>>()[range].to_vec()
    }

    #[test]
    fn the_newest_version_as_the_runtime_writes_it() {
        let bytes = Profile::read(&NEW.file(), &NEW.memory()).unwrap().to_bytes();
        let names = LINK + NEW.offsets()[1] as u64;
        // Magic, version, ids, records, -, counters, -, bitmap, -, names, deltas, names, vtables.
        let magic = 0xFF6C_7072_6F66_7281;
        let expected = [magic, 10, 0, 2, 0, 4, 0, 0, 0, 6, 128, 0, names, 0, 0, 2];
        assert_eq!(words(&bytes, 0..16), expected);
        assert_eq!(words(&bytes, 32..36), [1, 2, 3, 4]);
        assert_eq!(bytes[36 * 8..], [NAME, &[0; 2]].concat());
        // The numbers of value sites are gone, what is before and behind them stands.
        assert_eq!(bytes[128 + 48..128 + 60], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xEE, 0xEE]);
    }

    #[test]
    fn the_old_version_has_a_shorter_header() {
        let bytes = Profile::read(&OLD.file(), &OLD.memory()).unwrap().to_bytes();
        let names = LINK + OLD.offsets()[1] as u64;
        let magic = 0xFF6C_7072_6F66_7281;
        assert_eq!(words(&bytes, 0..11), [magic, 8, 0, 2, 0, 4, 0, 6, 96, names, 1]);
        assert_eq!(words(&bytes, 23..27), [1, 2, 3, 4]);
    }

    #[test]
    fn sums_are_of_one_image() {
        let mut profile = Profile::read(&NEW.file(), &NEW.memory()).unwrap();
        let signature = profile.signature();
        assert!(profile.add(&profile.clone()));
        assert_eq!(words(&profile.to_bytes(), 32..36), [2, 4, 6, 8]);
        assert_eq!(profile.signature(), signature);
        let other = Profile::read(&OLD.file(), &OLD.memory()).unwrap();
        assert!(!profile.add(&other));
        assert_ne!(other.signature(), signature);
    }

    #[test]
    fn a_file_is_read_back() {
        for image in [NEW, OLD] {
            let profile = Profile::read(&image.file(), &image.memory()).unwrap();
            let bytes = profile.to_bytes();
            assert_eq!(Profile::from_bytes(&bytes), Some(profile));
            let counters_end = bytes.len() - NAME.len().next_multiple_of(WORD);
            for len in 0..counters_end {
                assert_eq!(Profile::from_bytes(&bytes[..len]), None, "{len} bytes");
            }
        }
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        let memory = NEW.memory();
        assert_eq!(Profile::read(b"MZ", &memory), Err(Error::NotInstrumented));
        let mut file = NEW.file();
        let at = file.windows(15).position(|it| it == COUNTERS.as_bytes()).unwrap();
        file[at] = b'x';
        assert_eq!(Profile::read(&file, &memory), Err(Error::NotInstrumented));
        // Records that point elsewhere, and ones that leave counters over.
        let mut file = NEW.file();
        file[Image::SEGMENT + POINTER] ^= 0x80;
        assert_eq!(Profile::read(&file, &memory), Err(Error::Damaged(DATA)));
        let less = Image { counters: 1, ..NEW };
        let mut file = NEW.file();
        file[Image::SEGMENT..][..128].copy_from_slice(&less.data());
        assert_eq!(Profile::read(&file, &memory), Err(Error::Damaged(DATA)));
    }

    #[test]
    fn a_damaged_image_is_an_error_and_no_panic() {
        let (file, memory) = (NEW.file(), NEW.memory());
        for at in 0..file.len() {
            for byte in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut file = file.clone();
                file[at] = byte;
                if let Ok(profile) = Profile::read(&file, &memory) {
                    assert!(profile.to_bytes().len() <= 4096);
                }
            }
        }
    }
}
