//! The POST code port (0x80): a byte that firmware shows on a diagnostic card, and that
//! kernels write to for a short delay. Kept, and shown to nobody.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::Device;
use crate::state::{self, Malformed};

/// The port.
#[derive(Debug, Default)]
pub struct Post {
    /// The last byte. Relaxed: it orders nothing.
    code: AtomicU8,
}

impl Device for Post {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.code.load(Ordering::Relaxed));
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.code.store(data[0], Ordering::Relaxed);
    }

    fn save(&self) -> Vec<u8> {
        let Self { code } = self;
        state::encode(&state::Post { code: code.load(Ordering::Relaxed) })
    }

    fn restore(&self, state: &[u8]) -> Result<(), Malformed> {
        let state::Post { code } = state::decode(state)?;
        self.code.store(code, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_give_the_last_code() {
        let post = Post::default();
        let mut data = [0xFF];
        post.read(0, &mut data);
        assert_eq!(data, [0]);
        post.write(0, &[0x42]);
        post.read(0, &mut data);
        assert_eq!(data, [0x42]);
    }
}
