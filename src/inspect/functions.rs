//! Which function of the guest an address is in, by the symbol tables of its ELF files.
//!
//! Traces, statistics and profiles name many addresses and need no more than this;
//! [`super::Symbols`] adds source lines.

use std::fmt::Write as _;

use object::elf::{FileHeader32, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Object, ObjectKind, ObjectSection, ObjectSymbol, SymbolKind};

/// The functions of all of a guest's files.
#[derive(Debug, Default)]
pub struct Functions(Vec<Table>);

/// How much higher than its own addresses a position-independent image that is entered at
/// `entry` was loaded; 0 for any other.
pub fn offset_of_image(image: &[u8], entry: u64) -> u64 {
    match object::File::parse(image) {
        Ok(file) if file.kind() == ObjectKind::Dynamic => entry.wrapping_sub(file.entry()),
        _ => 0,
    }
}

impl Functions {
    /// Adds those of an ELF file whose addresses are `offset` lower than the guest's. False
    /// where it is no ELF file; one without symbols adds none.
    pub fn add(&mut self, file: &[u8], offset: u64) -> bool {
        let Ok(parsed) = object::File::parse(file) else { return false };
        self.0.push(Table::new(&parsed, file, offset));
        true
    }

    /// The function that `address` is in, and how far.
    pub fn name_of(&self, address: u64) -> Option<(&str, u64)> {
        self.0.iter().find_map(|table| table.find(address))
    }

    /// `memset+0x1c`; the number alone where no function is known.
    pub fn describe(&self, address: u64) -> String {
        match self.name_of(address) {
            Some((name, 0)) => name.to_owned(),
            Some((name, offset)) => format!("{name}+{offset:#x}"),
            None => format!("{address:#x}"),
        }
    }

    /// The start of the function that `address` is in; the address itself where none is known.
    pub fn start_of(&self, address: u64) -> u64 {
        self.name_of(address).map_or(address, |(_, offset)| address.wrapping_sub(offset))
    }
}

/// The functions of one file.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// What is added to the file's addresses for the guest's.
    offset: u64,
    /// Sorted by their starts.
    functions: Vec<Function>,
    aliases: Vec<Alias>,
}

#[derive(Debug)]
struct Function {
    start: u64,
    end: u64,
    name: String,
}

/// A segment that is loaded elsewhere than it is linked, where its code also lies before
/// paging is on.
#[derive(Debug)]
pub(super) struct Alias {
    pub(super) linked: u64,
    pub(super) loaded: u64,
    pub(super) len: u64,
}

impl Table {
    pub(super) fn new(file: &object::File<'_>, bytes: &[u8], offset: u64) -> Self {
        let sections: Vec<_> = file.sections().map(|it| (it.address(), it.size())).collect();
        let named = file.symbols().filter(|symbol| is_code(file, symbol)).filter_map(|symbol| {
            let name = symbol.name().ok().filter(|name| !name.is_empty())?;
            let (start, end) = (symbol.address(), symbol.address().saturating_add(symbol.size()));
            Some(Function { start, end, name: demangled(name) })
        });
        let functions = sorted(named.collect(), &sections);
        Self { offset, functions, aliases: aliases(bytes) }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.functions.len()
    }

    /// The file's own address for one of the guest's.
    pub(super) fn linked(&self, address: u64) -> u64 {
        let address = address.wrapping_sub(self.offset);
        let alias = self.aliases.iter().find(|it| address.wrapping_sub(it.loaded) < it.len);
        alias.map_or(address, |it| address.wrapping_sub(it.loaded).wrapping_add(it.linked))
    }

    /// The function that `address` of the guest is in, and how far.
    pub(super) fn find(&self, address: u64) -> Option<(&str, u64)> {
        let address = self.linked(address);
        let index = self.functions.partition_point(|it| it.start <= address).checked_sub(1)?;
        let Function { start, end, name } = &self.functions[index];
        (address < *end).then_some((name, address - start))
    }
}

/// Sorts them; of several names at one address the one with a size is the function's. One
/// without, as assembly has them, reaches to the next, or to the end of its section.
fn sorted(mut functions: Vec<Function>, sections: &[(u64, u64)]) -> Vec<Function> {
    functions.sort_by_key(|function| (function.start, u64::MAX - function.end));
    functions.dedup_by_key(|function| function.start);
    let starts: Vec<_> = functions.iter().skip(1).map(|it| it.start).chain([u64::MAX]).collect();
    for (function, next) in functions.iter_mut().zip(starts) {
        if function.end == function.start {
            let start = function.start;
            let section = sections.iter().find(|(at, size)| start.wrapping_sub(*at) < *size);
            function.end = section.map_or(start, |(at, size)| next.min(at.saturating_add(*size)));
        }
    }
    functions
}

/// Assembly rarely says what is a function: a label in code will do.
fn is_code<'a>(file: &object::File<'a>, symbol: &object::Symbol<'a, '_>) -> bool {
    let section = || file.section_by_index(symbol.section_index()?).ok();
    match symbol.kind() {
        SymbolKind::Text | SymbolKind::Label => true,
        SymbolKind::Unknown => section().is_some_and(|it| it.kind() == object::SectionKind::Text),
        _ => false,
    }
}

/// A name of Rust's or C++'s (Itanium C++ ABI 5.1) as its programmer wrote it; any other as it is.
pub(super) fn demangled(name: &str) -> String {
    let mut readable = Bounded(String::new());
    let written = match rustc_demangle::try_demangle(name) {
        Ok(rust) => write!(readable, "{rust:#}").is_ok(),
        Err(_) if name.starts_with("_Z") => cpp_demangle::Symbol::new(name).is_ok_and(|cpp| {
            let options = cpp_demangle::DemangleOptions::new();
            cpp.structured_demangle(&mut readable, &options).is_ok()
        }),
        Err(_) => false,
    };
    if written { readable.0 } else { name.to_owned() }
}

/// A short name can stand for one of any length, by naming parts of itself.
struct Bounded(String);

impl std::fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        const MOST: usize = 4096;
        if self.0.len() + text.len() > MOST {
            return Err(std::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Segments of an ELF file that are loaded elsewhere than they are linked.
pub(super) fn aliases(bytes: &[u8]) -> Vec<Alias> {
    fn of<H: FileHeader<Endian = object::Endianness>>(bytes: &[u8]) -> Option<Vec<Alias>> {
        let header = H::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, bytes).ok()?;
        let loads = segments.iter().filter(|it| it.p_type(endian) == PT_LOAD).map(|it| Alias {
            linked: it.p_vaddr(endian).into(),
            loaded: it.p_paddr(endian).into(),
            len: it.p_memsz(endian).into(),
        });
        Some(loads.filter(|it| it.linked != it.loaded).collect())
    }
    of::<FileHeader64<object::Endianness>>(bytes)
        .or_else(|| of::<FileHeader32<object::Endianness>>(bytes))
        .unwrap_or_default()
}

#[cfg(test)]
impl Functions {
    /// By start, end and name, all in one section of their own.
    pub(super) fn named(functions: &[(u64, u64, &str)]) -> Self {
        let function =
            |&(start, end, name): &(u64, u64, &str)| Function { start, end, name: name.to_owned() };
        let functions = sorted(functions.iter().map(function).collect(), &[(0x3000, 0x100)]);
        Self(vec![Table { functions, ..Table::default() }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_their_functions() {
        let functions = Functions::named(&[
            (0x2000, 0x2010, "second"),
            (0x1000, 0x1020, "first"),
            (0x1000, 0x1000, "alias"),
            (0x3000, 0x3000, "label"),
            (0x3010, 0x3010, "next_label"),
        ]);
        assert_eq!(functions.name_of(0xFFF), None);
        assert_eq!(functions.name_of(0x1000), Some(("first", 0)));
        assert_eq!(functions.describe(0x101F), "first+0x1f");
        assert_eq!(functions.describe(0x1020), "0x1020");
        assert_eq!(functions.describe(0x300F), "label+0xf");
        assert_eq!(functions.describe(0x30FF), "next_label+0xef");
        assert_eq!(functions.name_of(0x3100), None);
        assert_eq!((functions.start_of(0x2004), functions.start_of(5)), (0x2000, 5));
    }

    #[test]
    fn files_that_lie_elsewhere_than_they_are_linked() {
        let mut functions = Functions::named(&[(0x2000, 0x2010, "f")]);
        let alias = Alias { linked: 0x2000, loaded: 0x9000, len: 0x1000 };
        functions.0[0].aliases.push(alias);
        assert_eq!(functions.describe(0x9004), "f+0x4");
        functions.0[0].offset = 0x10_0000;
        assert_eq!(functions.describe(0x10_2004), "f+0x4");
        assert_eq!(functions.name_of(0x2004), None);
    }

    #[test]
    fn rust_and_cpp_names_are_demangled_and_others_left() {
        assert_eq!(
            demangled("_ZN4core9panicking5panic17h0123456789abcdefE"),
            "core::panicking::panic"
        );
        assert_eq!(demangled("_ZN4kern3runEPi"), "kern::run(int*)");
        for other in ["put_text", "_Z", "_ZN4ker", "main"] {
            assert_eq!(demangled(other), other);
        }
        // Each S_ doubles what was before it.
        let long = format!("_Z1f1aIiE{}", "1aIS_S_E".repeat(100));
        assert!(demangled(&long).len() <= 4096);
        let long = format!("_RMC0{}Eu.a", "FGZZZ_".repeat(20));
        assert!(demangled(&long).len() <= 4096);
    }

    #[test]
    fn what_is_no_elf_file_has_no_functions() {
        for image in [&b""[..], b"\x7FELF", &[0x90; 512]] {
            assert!(!Functions::default().add(image, 0));
            assert_eq!(offset_of_image(image, 0x1000), 0);
        }
    }
}
