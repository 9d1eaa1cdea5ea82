//! A processor model: which of the features that KVM offers the guest sees. `--cpu` as data,
//! and what it makes of CPUID's leaves. Called by `config` and `kvm`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::cpuid::{Leaf, Policy, Reg};
use super::features::{Feature, features, find};

/// A named set of features.
struct Level {
    name: &'static str,
    /// The level that it contains.
    below: Option<&'static str>,
    /// What it adds.
    features: &'static str,
}

/// The levels of the System V psABI for x86-64 (table 3.1), the first with what a kernel needs
/// to run at all.
const LEVELS: &[Level] = &[
    Level {
        name: "x86-64-v1",
        below: None,
        features: "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush \
                   mmx fxsr sse sse2 ht hypervisor syscall nx lm",
    },
    Level {
        name: "x86-64-v2",
        below: Some("x86-64-v1"),
        features: "cx16 lahf-lm popcnt sse3 sse4-1 sse4-2 ssse3",
    },
    Level {
        name: "x86-64-v3",
        below: Some("x86-64-v2"),
        features: "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    },
    Level {
        name: "x86-64-v4",
        below: Some("x86-64-v3"),
        features: "avx512f avx512bw avx512cd avx512dq avx512vl",
    },
];

/// All that KVM offers.
const MAX: &str = "max";

/// Hyper-V's interface beside KVM's.
const HYPERV: &str = "hyperv";

/// What goes when another feature goes, in an order in which one pass finds all (Intel SDM
/// Vol. 1, 13.2, 14.1 and 15.2).
const NEED: &[(&str, &str)] = &[
    ("xsave", "avx pku xsaveopt xsavec xgetbv1 xsaves xfd mpx amx-tile"),
    ("avx", "avx2 fma f16c vaes vpclmulqdq xop fma4 avx-vnni avx-ifma"),
    ("avx2", "avx512f"),
    (
        "avx512f",
        "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vbmi avx512-vbmi2 \
         avx512-vnni avx512-bitalg avx512-vpopcntdq avx512-4vnniw avx512-4fmaps \
         avx512-vp2intersect avx512-fp16 avx512-bf16",
    ),
    ("amx-tile", "amx-bf16 amx-int8 amx-fp16"),
];

/// The state components of XSAVE, by the bits of XCR0, and the feature that each belongs to.
const COMPONENTS: &[(u32, &str)] = &[
    (1 << 2, "avx"),
    (3 << 3, "mpx"),
    (7 << 5, "avx512f"),
    (1 << 9, "pku"),
    (3 << 17, "amx-tile"),
];

/// Fewest bits of a physical address that a guest in long mode can live with.
const MIN_PHYS_BITS: u8 = 32;
/// Most that page tables have room for (Intel SDM Vol. 3A 5.1.4).
const MAX_PHYS_BITS: u8 = 52;

/// A feature that was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    feature: Feature,
    add: bool,
}

/// A processor model; the default is all that KVM offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// An index into [`LEVELS`].
    level: Option<usize>,
    vendor: Option<[u8; 12]>,
    phys_bits: Option<u8>,
    /// Does it find Hyper-V's interface?
    hyperv: bool,
    changes: Vec<Change>,
}

impl FromStr for Model {
    type Err = String;

    /// `[MODEL][,vendor=NAME][,phys-bits=N][,hyperv][,+FEATURE][,-FEATURE]`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut model = Self::default();
        for (position, word) in text.split(',').enumerate() {
            if let Some(change) = word.strip_prefix(['+', '-']) {
                model.changes.push(Change { feature: named(change)?, add: word.starts_with('+') });
            } else if let Some(vendor) = word.strip_prefix("vendor=") {
                model.vendor = Some(vendor_name(vendor)?);
            } else if let Some(bits) = word.strip_prefix("phys-bits=") {
                model.phys_bits = Some(phys_bits(bits)?);
            } else if word == HYPERV {
                model.hyperv = true;
            } else if position == 0 {
                model.level = level(word)?;
            } else {
                return Err(format!(
                    "{word:?} is none of vendor=NAME, phys-bits=N, hyperv, +FEATURE, -FEATURE"
                ));
            }
        }
        Ok(model)
    }
}

fn named(name: &str) -> Result<Feature, String> {
    find(name).ok_or_else(|| {
        format!(
            "there is no feature {name:?} (the names are those of Linux's /proc/cpuinfo and QEMU's)"
        )
    })
}

fn level(name: &str) -> Result<Option<usize>, String> {
    let position = LEVELS.iter().position(|level| level.name == name);
    if position.is_some() || name == MAX {
        return Ok(position);
    }
    let known: Vec<_> = LEVELS.iter().map(|level| level.name).collect();
    Err(format!("{name:?} is no processor model: there are {MAX}, {}", known.join(", ")))
}

fn vendor_name(text: &str) -> Result<[u8; 12], String> {
    let bytes = text.as_bytes().try_into().ok().filter(|bytes: &[u8; 12]| {
        bytes.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')
    });
    bytes.ok_or_else(|| {
        format!("a vendor is 12 characters, as GenuineIntel and AuthenticAMD are: {text:?} is not")
    })
}

fn phys_bits(text: &str) -> Result<u8, String> {
    let bits = text.parse().ok().filter(|bits| (MIN_PHYS_BITS..=MAX_PHYS_BITS).contains(bits));
    bits.ok_or_else(|| format!("phys-bits is {MIN_PHYS_BITS} to {MAX_PHYS_BITS}, not {text:?}"))
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, vendor, phys_bits, hyperv, changes } = self;
        f.write_str(level.map_or(MAX, |index| LEVELS[index].name))?;
        if let Some(vendor) = vendor {
            write!(f, ",vendor={}", String::from_utf8_lossy(vendor))?;
        }
        if let Some(bits) = phys_bits {
            write!(f, ",phys-bits={bits}")?;
        }
        if *hyperv {
            write!(f, ",{HYPERV}")?;
        }
        changes.iter().try_for_each(|change| {
            write!(f, ",{}{}", if change.add { '+' } else { '-' }, change.feature.name)
        })
    }
}

impl Serialize for Model {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Model {
    /// Is it all that KVM offers, unchanged?
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Does the guest find Hyper-V's interface? It needs local APICs.
    pub fn hyperv(&self) -> bool {
        self.hyperv
    }

    /// Makes of `leaves`, which KVM offers, what the vCPU of `policy` is to see. Gives back what
    /// was asked for and is not to be had.
    pub fn shape(&self, policy: &Policy, leaves: &mut [Leaf]) -> Vec<String> {
        if self.is_default() {
            leaves.iter_mut().for_each(|leaf| policy.adjust(leaf));
            return Vec::new();
        }
        leaves.iter_mut().for_each(|leaf| policy.offer(leaf));
        let offered = leaves.to_vec();
        leaves.iter_mut().for_each(|leaf| policy.adjust(leaf));
        self.apply(&offered, leaves)
    }

    /// Makes of `leaves` what the guest is to see; `offered` is what there is to be had. Gives
    /// back what was asked for and is not offered.
    fn apply(&self, offered: &[Leaf], leaves: &mut [Leaf]) -> Vec<String> {
        if let Some(level) = self.level {
            keep_only(leaves, &LEVELS[level]);
        }
        let mut missing = Vec::new();
        for Change { feature, add } in &self.changes {
            if *add && !is_set(offered, feature) {
                missing.push(feature.name.to_owned());
            } else {
                set(leaves, feature, *add);
            }
        }
        self.drop_dependents(leaves);
        shape_xsave(leaves);
        if let Some(vendor) = &self.vendor {
            set_vendor(leaves, vendor);
        }
        if let Some(bits) = self.phys_bits {
            missing.extend(set_phys_bits(leaves, bits));
        }
        missing
    }

    /// What needs a feature that is not there goes too.
    fn drop_dependents(&self, leaves: &mut [Leaf]) {
        for (needed, names) in NEED {
            if has(leaves, needed) {
                continue;
            }
            for feature in names.split_ascii_whitespace().filter_map(find) {
                set(leaves, &feature, false);
            }
        }
        // AMD repeats a part of leaf 1 (AMD APM Vol. 3, E.4.1).
        const REPEATED: u32 = 0x0183_F3FF;
        let first = leaves.iter().find(|leaf| leaf.function == 1).map_or(0, |leaf| leaf.edx);
        for leaf in leaves.iter_mut().filter(|leaf| leaf.function == 0x8000_0001) {
            leaf.edx &= first | !REPEATED;
        }
        // Without SVM the leaf that describes it says nothing.
        if !has(leaves, "svm") {
            let svm = leaves.iter_mut().filter(|leaf| leaf.function == 0x8000_000A);
            svm.for_each(|leaf| (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0));
        }
    }
}

/// Drops every feature that is not of the level or below; KVM's own are no processor's.
fn keep_only(leaves: &mut [Leaf], level: &Level) {
    /// What a model leaves out altogether: performance counters, processor trace, AMX.
    const LEFT_OUT: &[u32] = &[0xA, 0x14, 0x1C, 0x1D, 0x1E, 0x8000_0022];
    let mut kept = Vec::new();
    let mut next = Some(level);
    while let Some(level) = next {
        kept.extend(level.features.split_ascii_whitespace().filter_map(find));
        next = level.below.and_then(|below| LEVELS.iter().find(|level| level.name == below));
    }
    for feature in features().filter(|feature| feature.function != 0x4000_0001) {
        if !kept.contains(&feature) {
            set(leaves, &feature, false);
        }
    }
    // Sub-leaves of 7 hold features only, many younger than the names here.
    let is_left_out =
        |leaf: &Leaf| LEFT_OUT.contains(&leaf.function) || leaf.function == 7 && leaf.index > 0;
    for leaf in leaves.iter_mut().filter(|leaf| is_left_out(leaf)) {
        (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
    }
}

fn register<'a>(leaf: &'a mut Leaf, feature: &Feature) -> &'a mut u32 {
    match feature.reg {
        Reg::Eax => &mut leaf.eax,
        Reg::Ebx => &mut leaf.ebx,
        Reg::Ecx => &mut leaf.ecx,
        Reg::Edx => &mut leaf.edx,
    }
}

fn is_of(leaf: &Leaf, feature: &Feature) -> bool {
    (leaf.function, leaf.index) == (feature.function, feature.index)
}

fn set(leaves: &mut [Leaf], feature: &Feature, on: bool) {
    for leaf in leaves.iter_mut().filter(|leaf| is_of(leaf, feature)) {
        let register = register(leaf, feature);
        *register = *register & !(1 << feature.bit) | u32::from(on) << feature.bit;
    }
}

fn is_set(leaves: &[Leaf], feature: &Feature) -> bool {
    let leaf = leaves.iter().find(|leaf| is_of(leaf, feature));
    leaf.is_some_and(|leaf| *register(&mut leaf.clone(), feature) & 1 << feature.bit != 0)
}

fn has(leaves: &[Leaf], name: &str) -> bool {
    find(name).is_some_and(|feature| is_set(leaves, &feature))
}

/// Leaf 0xD follows the features (Intel SDM Vol. 1, 13.2): the components of XCR0, and the size
/// of all of them.
fn shape_xsave(leaves: &mut [Leaf]) {
    /// x87 and SSE, and XSAVE's own header.
    const LEGACY_SIZE: u32 = 576;
    let gone = COMPONENTS.iter().filter(|(_, name)| !has(leaves, name));
    let gone = gone.fold(0, |bits, (component, _)| bits | component);
    let xsave = has(leaves, "xsave");
    let mut size = LEGACY_SIZE;
    for leaf in leaves.iter_mut().filter(|leaf| leaf.function == 0xD) {
        let dropped = leaf.index >= 2 && leaf.index < 32 && gone & 1 << leaf.index != 0;
        if !xsave || dropped {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
        // Bit 0 of ECX: a component of supervisors, which has no place in this form.
        if leaf.index >= 2 && leaf.ecx & 1 == 0 {
            size = size.max(leaf.eax + leaf.ebx);
        }
    }
    let first = leaves.iter_mut().find(|leaf| (leaf.function, leaf.index) == (0xD, 0));
    if let Some(first) = first.filter(|_| xsave) {
        first.eax &= !gone;
        first.ecx = size;
    }
}

fn set_vendor(leaves: &mut [Leaf], vendor: &[u8; 12]) {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| vendor[at + byte]));
    for leaf in leaves.iter_mut().filter(|leaf| matches!(leaf.function, 0 | 0x8000_0000)) {
        (leaf.ebx, leaf.edx, leaf.ecx) = (word(0), word(4), word(8));
    }
}

/// Refuses more than there are.
fn set_phys_bits(leaves: &mut [Leaf], bits: u8) -> Option<String> {
    let leaf = leaves.iter_mut().find(|leaf| leaf.function == 0x8000_0008);
    match leaf.filter(|leaf| leaf.eax & 0xFF >= bits.into()) {
        None => Some(format!("phys-bits={bits}")),
        Some(leaf) => {
            // Bits 23 to 16: a guest's own limit, which KVM sets where it is a smaller one.
            leaf.eax = leaf.eax & !0xFF_00FF | u32::from(bits);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> Leaf {
        let all = u32::MAX;
        Leaf { function, index, eax: all, ebx: all, ecx: all, edx: all }
    }

    /// A processor that has everything.
    fn everything() -> Vec<Leaf> {
        let mut leaves: Vec<_> = [0, 1, 6, 7, 0x4000_0001, 0x8000_0000, 0x8000_0001, 0x8000_000A]
            .map(|function| leaf(function, 0))
            .into();
        leaves.push(leaf(7, 1));
        leaves.push(Leaf { eax: 48 | 48 << 16, ..leaf(0x8000_0008, 0) });
        leaves.push(Leaf { eax: 0x2E7, ecx: 2700, ..leaf(0xD, 0) });
        leaves.push(leaf(0xD, 1));
        for (index, eax, ebx) in [(2, 256, 576), (5, 64, 1088), (9, 8, 2688)] {
            leaves.push(Leaf { function: 0xD, index, eax, ebx, ecx: 0, edx: 0 });
        }
        leaves
    }

    fn shaped(text: &str) -> (Vec<Leaf>, Vec<String>) {
        let (model, offered) = (text.parse::<Model>().unwrap(), everything());
        let mut leaves = offered.clone();
        let missing = model.apply(&offered, &mut leaves);
        (leaves, missing)
    }

    fn get(leaves: &[Leaf], function: u32, index: u32) -> Leaf {
        *leaves.iter().find(|it| (it.function, it.index) == (function, index)).unwrap()
    }

    #[test]
    fn the_text_is_read_and_written() {
        for text in ["max", "x86-64-v2,vendor=GenuineIntel,phys-bits=36,hyperv,+smap,-sse4-2"] {
            assert_eq!(text.parse::<Model>().unwrap().to_string(), text);
        }
        assert_eq!("-smap".parse::<Model>().unwrap().to_string(), "max,-smap");
        assert!("max".parse::<Model>().unwrap().is_default());
        for (text, words) in [
            ("pentium", "no processor model: there are max, x86-64-v1"),
            ("", "no processor model"),
            ("max,v2", "none of vendor=NAME"),
            ("max,+warp", "no feature \"warp\""),
            ("max,+", "no feature \"\""),
            ("max,vendor=Intel", "12 characters"),
            ("max,vendor=GenuineInte\u{7}", "12 characters"),
            ("max,phys-bits=64", "32 to 52"),
            ("max,phys-bits=", "32 to 52"),
        ] {
            let error = text.parse::<Model>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn single_features_come_and_go() {
        let (leaves, missing) = shaped("-smap,-x2apic");
        assert_eq!(missing, [""; 0]);
        assert_eq!(get(&leaves, 7, 0).ebx, !(1 << 20));
        assert_eq!(get(&leaves, 1, 0).ecx, !(1 << 21));
        let mut leaves = everything();
        get_mut(&mut leaves, 0x4000_0001).eax = 0;
        let model: Model = "max,+kvm-pv-eoi".parse().unwrap();
        assert_eq!(model.apply(&everything(), &mut leaves), [""; 0]);
        assert_eq!(get(&leaves, 0x4000_0001, 0).eax, 1 << 6);
        let none = vec![leaf(0, 0)];
        assert_eq!(model.apply(&none, &mut none.clone()), ["kvm-pv-eoi"]);
    }

    fn get_mut(leaves: &mut [Leaf], function: u32) -> &mut Leaf {
        leaves.iter_mut().find(|it| it.function == function).unwrap()
    }

    #[test]
    fn a_level_has_its_features_and_no_others() {
        let (leaves, _) = shaped("x86-64-v1,+x2apic");
        // Bits 16 and 27 are no features: reserved, and OSXSAVE, which the guest sets itself.
        assert_eq!(get(&leaves, 1, 0).ecx & !(1 << 16 | 1 << 27), 1 << 31 | 1 << 21);
        assert_eq!(get(&leaves, 7, 1).edx, 0);
        assert_eq!(get(&leaves, 7, 0).ebx & 1 << 20, 0);
        assert_eq!(get(&leaves, 0x8000_0001, 0).edx >> 20 & 1, 1, "nx");
        assert_eq!(get(&leaves, 0x4000_0001, 0).eax, u32::MAX);
        assert_eq!(get(&leaves, 0xD, 0), Leaf { function: 0xD, ..Leaf::default() });
        let (leaves, _) = shaped("x86-64-v3");
        assert_ne!(get(&leaves, 7, 0).ebx & 1 << 5, 0, "avx2");
        assert_eq!(get(&leaves, 7, 0).ebx & 1 << 16, 0, "avx512f");
        assert_eq!((get(&leaves, 0xD, 0).eax, get(&leaves, 0xD, 0).ecx), (7, 832));
    }

    #[test]
    fn what_needs_a_feature_goes_with_it() {
        let (leaves, _) = shaped("-xsave");
        assert_eq!(get(&leaves, 1, 0).ecx & (1 << 26 | 1 << 28 | 1 << 12), 0, "xsave, avx, fma");
        assert_eq!(get(&leaves, 7, 0).ebx & (1 << 5 | 1 << 16 | 1 << 31), 0, "avx2, avx512");
        assert_eq!(get(&leaves, 0xD, 1).eax, 0);
        let (leaves, _) = shaped("-pku,-svm,-sse2");
        assert_eq!((get(&leaves, 0xD, 0).eax, get(&leaves, 0xD, 9).eax), (0xE7, 0));
        assert_eq!(get(&leaves, 0x8000_000A, 0).edx, 0);
        assert_ne!(get(&leaves, 0x8000_0001, 0).edx & 1 << 29, 0);
    }

    #[test]
    fn vendor_and_address_bits() {
        let (leaves, missing) = shaped("max,vendor=GenuineIntel,phys-bits=40");
        let first = get(&leaves, 0, 0);
        assert_eq!([first.ebx, first.edx, first.ecx], [0x756E_6547, 0x4965_6E69, 0x6C65_746E]);
        assert_eq!((get(&leaves, 0x8000_0008, 0).eax, missing.len()), (40, 0));
        assert_eq!(shaped("max,phys-bits=52").1, ["phys-bits=52"]);
    }
}
