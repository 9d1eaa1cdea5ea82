//! Which function of the guest an address is in, by the symbol table of its ELF image.
//!
//! Called by traces, statistics and profiles; they name many addresses, and need no lines.

use object::read::elf::{ElfFile, FileHeader};
use object::{Endianness, Object, ObjectKind, ObjectSymbol, SymbolKind, elf};

/// The guest's functions, sorted by address.
#[derive(Debug, Default)]
pub struct Functions(Vec<Function>);

#[derive(Debug)]
struct Function {
    start: u64,
    end: u64,
    name: String,
}

impl Functions {
    /// Those of an ELF image; none where it is no ELF file or has no symbols. `entry` is where
    /// it is entered, which tells how far a position-independent image was moved.
    pub fn of_image(image: &[u8], entry: u64) -> Self {
        let of_64 = ElfFile::<elf::FileHeader64<Endianness>>::parse(image);
        let of_32 = ElfFile::<elf::FileHeader32<Endianness>>::parse(image);
        match (of_64, of_32) {
            (Ok(file), _) => Self::of_file(&file, entry),
            (_, Ok(file)) => Self::of_file(&file, entry),
            _ => Self::default(),
        }
    }

    fn of_file<H: FileHeader>(file: &ElfFile<'_, H>, entry: u64) -> Self {
        let moved = match file.kind() {
            ObjectKind::Dynamic => entry.wrapping_sub(file.entry()),
            _ => 0,
        };
        // Assembly rarely says what is a function: a label in code will do.
        let is_code = |symbol: &object::read::elf::ElfSymbol<'_, '_, H>| {
            let kind = symbol.kind();
            let in_code = kind == SymbolKind::Text || kind == SymbolKind::Label;
            in_code || kind == SymbolKind::Unknown && symbol.section_index().is_some()
        };
        let named = file.symbols().filter(is_code).filter_map(|symbol| {
            let name = symbol.name().ok().filter(|name| !name.is_empty())?;
            let start = symbol.address().wrapping_add(moved);
            let end = start.saturating_add(symbol.size());
            Some(Function { start, end, name: name.to_owned() })
        });
        Self::sorted(named.collect())
    }

    fn sorted(mut functions: Vec<Function>) -> Self {
        // Of several names at one address the one with a size is the function's.
        functions.sort_by_key(|function| (function.start, u64::MAX - function.end));
        functions.dedup_by_key(|function| function.start);
        Self(functions)
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The function that `address` is in, and how far.
    pub fn name_of(&self, address: u64) -> Option<(&str, u64)> {
        let index = self.0.partition_point(|function| function.start <= address).checked_sub(1)?;
        let Function { start, end, name } = &self.0[index];
        // One without a size ends where the next one starts, but not far away.
        const LONGEST: u64 = 64 << 10;
        let inside = address < *end || end == start && address - start < LONGEST;
        inside.then_some((name, address - start))
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
        self.name_of(address).map_or(address, |(_, offset)| address - offset)
    }
}

#[cfg(test)]
impl Functions {
    pub(super) fn named(functions: &[(u64, u64, &str)]) -> Self {
        let function =
            |&(start, end, name): &(u64, u64, &str)| Function { start, end, name: name.to_owned() };
        Self::sorted(functions.iter().map(function).collect())
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
        ]);
        assert_eq!(functions.name_of(0xFFF), None);
        assert_eq!(functions.name_of(0x1000), Some(("first", 0)));
        assert_eq!(functions.describe(0x101F), "first+0x1f");
        assert_eq!(functions.describe(0x1020), "0x1020");
        assert_eq!(functions.describe(0x3004), "label+0x4");
        assert_eq!(functions.name_of(0x3000 + (64 << 10)), None);
        assert_eq!((functions.start_of(0x2004), functions.start_of(5)), (0x2000, 5));
    }

    #[test]
    fn what_is_no_elf_file_has_no_functions() {
        for image in [&b""[..], b"\x7FELF", &[0x90; 512]] {
            assert!(Functions::of_image(image, 0).is_empty());
        }
    }
}
