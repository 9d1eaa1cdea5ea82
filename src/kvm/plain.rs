//! Structures of the KVM API as their bytes, for saved state, and back.

use kvm_bindings::{
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_pic_state, kvm_pit_state2, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

use crate::state::Malformed;

/// A structure of `SIZE` bytes that may have any bit pattern.
///
/// # Safety
/// It is made of integers without padding between them, and `SIZE` is all of it.
pub(super) unsafe trait Plain: Default {
    /// Its bytes in the kernel's API: the format of saved state stands on it.
    const SIZE: usize;
}

macro_rules! plain {
    ($($structure:ident $size:expr),*) => {$(
        // SAFETY: one of the kernel's C structures, which name their padding; its size is
        // asserted.
        unsafe impl Plain for $structure {
            const SIZE: usize = {
                assert!(size_of::<$structure>() == $size);
                $size
            };
        }
    )*};
}

plain!(
    kvm_regs 144,
    kvm_sregs 312,
    kvm_vcpu_events 64,
    kvm_xsave 4096,
    kvm_xcrs 392,
    kvm_debugregs 128,
    kvm_lapic_state 1024,
    kvm_irqchip 520,
    kvm_pic_state 16,
    kvm_pit_state2 112
);

/// Its bytes.
pub(super) fn to_bytes<T: Plain>(structure: &T) -> Vec<u8> {
    // SAFETY: SIZE bytes lie there, all of them integers of the structure's (`Plain`).
    unsafe { std::slice::from_raw_parts((&raw const *structure).cast::<u8>(), T::SIZE) }.to_vec()
}

/// The structure that these are the bytes of.
pub(super) fn from_bytes<T: Plain>(bytes: &[u8]) -> Result<T, Malformed> {
    let mut structure = T::default();
    if bytes.len() != T::SIZE {
        let name = std::any::type_name::<T>();
        return Err(Malformed(format!("{} bytes for {name}, not {}", bytes.len(), T::SIZE)));
    }
    // SAFETY: SIZE bytes are there on both sides, which do not overlap, and the structure may
    // have any bit pattern (`Plain`).
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut structure).cast::<u8>(), T::SIZE);
    }
    Ok(structure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let regs = kvm_regs { rax: 0x0102_0304, rip: u64::MAX, ..Default::default() };
        let bytes = to_bytes(&regs);
        assert_eq!((bytes.len(), &bytes[..4]), (144, &[4, 3, 2, 1][..]));
        assert_eq!(from_bytes(&bytes), Ok(regs));
        assert!(from_bytes::<kvm_regs>(&bytes[1..]).is_err());
    }
}
