//! Where gdb connects: a TCP port or a Unix socket, one gdb at a time.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use gdbstub::conn::Connection;

use crate::control::unix::Socket;

/// How long a gdb that does not read may keep the machine from its end.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest answer, far beyond what a gdb asks for, which keeps to the size of a packet.
const ANSWER: usize = 1 << 20;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`; port 0 takes a free one.
    Tcp(String),
    /// A path.
    Unix(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("tcp", at)) if has_port(at) => Ok(Self::Tcp(at.to_owned())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(format!("{text:?} is none of tcp:HOST:PORT, unix:PATH")),
        }
    }
}

fn has_port(at: &str) -> bool {
    at.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// What gdb's `target remote` takes.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => write!(f, "{at}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The listening end.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(Socket),
}

impl Listener {
    /// Listens; gives back where, with the port that was taken for port 0.
    pub(super) fn bind(address: &Address) -> io::Result<(Self, Address)> {
        match address {
            Address::Tcp(at) => {
                let listener = TcpListener::bind(at.as_str())?;
                listener.set_nonblocking(true)?;
                let at = listener.local_addr()?.to_string();
                Ok((Self::Tcp(listener), Address::Tcp(at)))
            }
            Address::Unix(path) => Ok((Self::Unix(Socket::bind(path)?), address.clone())),
        }
    }

    /// The gdb that waits; `None` when there is none (any more).
    pub(super) fn accept(&self) -> io::Result<Option<Peer>> {
        let accepted = match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(socket) => {
                let stream = socket.accept()?;
                return stream.map(|stream| Peer::new(Stream::Unix(stream))).transpose();
            }
        };
        match accepted {
            Ok(stream) => Peer::new(stream).map(Some),
            Err(e) if is_passing(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn is_passing(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(e.kind(), ConnectionAborted | Interrupted | WouldBlock)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One gdb. What is written is kept until it is flushed: a packet is one write.
#[derive(Debug)]
pub(super) struct Peer {
    stream: Stream,
    out: Vec<u8>,
    /// What is written is thrown away.
    pub(super) mute: bool,
}

impl Peer {
    fn new(stream: Stream) -> io::Result<Self> {
        match &stream {
            Stream::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
            }
            Stream::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(PATIENCE))?;
            }
        }
        Ok(Self { stream, out: Vec::new(), mute: false })
    }

    /// What has come; nothing when gdb has gone. Blocks when nothing has come yet.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }

    /// Answers a packet with an error number, or a `-` where it did not arrive whole, instead of
    /// anything that has been written and not been sent.
    pub(super) fn refuse(&mut self, is_whole: bool, number: u8) -> io::Result<()> {
        self.out.clear();
        if !is_whole {
            self.out.push(b'-');
            return self.flush();
        }
        self.out.push(b'+');
        self.send(&format!("E{number:02x}"))
    }

    /// Sends a packet of our own: text on gdb's console, or an answer that gdbstub leaves out.
    pub(super) fn send(&mut self, body: &str) -> io::Result<()> {
        let sum = body.bytes().fold(0_u8, u8::wrapping_add);
        self.write_all(format!("${body}#{sum:02x}").as_bytes())?;
        self.flush()
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.out.len() + bytes.len() > ANSWER {
            return Err(io::Error::other("it asks for too much at a time"));
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let out = std::mem::take(&mut self.out);
        match &mut self.stream {
            _ if self.mute => Ok(()),
            Stream::Tcp(stream) => stream.write_all(&out),
            Stream::Unix(stream) => stream.write_all(&out),
        }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Connection for &mut Peer {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        Peer::write_all(self, &[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Peer::write_all(self, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Peer::flush(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("tcp:localhost:1234"), Ok(Address::Tcp("localhost:1234".into())));
        assert_eq!(parse("tcp:[::1]:0"), Ok(Address::Tcp("[::1]:0".into())));
        assert_eq!(parse("unix:/run/gdb"), Ok(Address::Unix("/run/gdb".into())));
        for bad in ["", "tcp", "tcp:1234", "tcp::1234", "tcp:host:", "tcp:host:70000", "unix:"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_0_becomes_a_port() {
        let (_listener, at) = Listener::bind(&Address::Tcp("127.0.0.1:0".into())).unwrap();
        assert!(!at.to_string().ends_with(":0"));
    }
}
