//! Where a guest's console output goes on the host, so that a reader who does not read can
//! not keep a machine from its end.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::poll::poll;
use crate::vcpu::Control;

/// How long to wait for a reader before looking whether the machine is to end, in ms.
const PATIENCE: libc::c_int = 200;

/// A file, pipe or terminal that output is written to.
pub(super) struct HostOutput {
    file: File,
    control: Arc<Control>,
}

impl HostOutput {
    pub(super) fn new(file: File, control: Arc<Control>) -> Self {
        Self { file, control }
    }

    /// Waits until a write would not block; false when the machine is to end before.
    fn wait(&self) -> io::Result<bool> {
        loop {
            let [ready] = poll([(self.file.as_raw_fd(), libc::POLLOUT)], PATIENCE)?;
            if ready != 0 {
                return Ok(true);
            }
            if self.control.should_stop() {
                return Ok(false);
            }
        }
    }
}

impl io::Write for HostOutput {
    /// Writes what there is room for; drops it when the machine is to end.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A pipe that is ready takes PIPE_BUF bytes without blocking (pipe(7)).
        let bytes = &bytes[..bytes.len().min(libc::PIPE_BUF)];
        if self.wait()? { self.file.write(bytes) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
