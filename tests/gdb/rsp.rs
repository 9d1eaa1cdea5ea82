//! gdb's remote protocol in its smallest form (GDB manual, appendix E), for what a stock gdb
//! never sends, and for machines that have none.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::common::LIMIT;

/// Both kinds of socket.
pub trait Wire: Read + Write + Send {
    fn hang_up(&self);
}

impl Wire for UnixStream {
    fn hang_up(&self) {
        let _ = self.shutdown(Shutdown::Both); // the stub may have hung up before
    }
}

impl Wire for TcpStream {
    fn hang_up(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// A connection to the stub.
pub struct Client {
    wire: Box<dyn Wire>,
}

/// Closing alone is not seen at once: a process that another test is about to start has the socket
/// too, from its fork to its exec.
impl Drop for Client {
    fn drop(&mut self) {
        self.wire.hang_up();
    }
}

impl Client {
    /// Connects to where ringfence says that it listens.
    pub fn connect(address: &str) -> Self {
        Self::with_patience(address, LIMIT)
    }

    /// The same; what does not come in time is a failure of the read.
    pub fn with_patience(address: &str, patience: Duration) -> Self {
        let wire: Box<dyn Wire> = if address.starts_with('/') {
            let stream = UnixStream::connect(address).expect("connects");
            stream.set_read_timeout(Some(patience)).unwrap();
            Box::new(stream)
        } else {
            let stream = TcpStream::connect(address).expect("connects");
            stream.set_read_timeout(Some(patience)).unwrap();
            Box::new(stream)
        };
        Self { wire }
    }

    /// Sends bytes as they are; whether they could be sent.
    pub fn raw(&mut self, bytes: &[u8]) -> bool {
        self.wire.write_all(bytes).is_ok()
    }

    /// The next byte; `None` when the connection has ended or nothing comes.
    pub fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        matches!(self.wire.read(&mut byte), Ok(1)).then_some(byte[0])
    }

    pub fn send(&mut self, body: &str) {
        let sum = body.bytes().fold(0_u8, u8::wrapping_add);
        assert!(self.raw(format!("${body}#{sum:02x}").as_bytes()), "cannot send {body}");
    }

    /// The next packet, acknowledged; console text apart. `None` at the end of the connection.
    pub fn packet(&mut self) -> Option<String> {
        loop {
            while self.byte()? != b'$' {}
            let mut body = Vec::new();
            loop {
                match self.byte()? {
                    b'#' => break,
                    byte => body.push(byte),
                }
            }
            let _ = (self.byte()?, self.byte()?); // the checksum
            self.raw(b"+");
            let body = expand(&body);
            let is_text = body.starts_with('O') && body != "OK";
            if !is_text {
                return Some(body);
            }
        }
    }

    #[track_caller]
    pub fn ask(&mut self, body: &str) -> String {
        self.send(body);
        self.packet().unwrap_or_else(|| panic!("no answer to {body}"))
    }

    /// A `monitor` command's text.
    #[track_caller]
    pub fn monitor(&mut self, command: &str) -> String {
        self.send(&format!("qRcmd,{}", hex(command.as_bytes())));
        let mut text = Vec::new();
        loop {
            while self.byte().expect("an answer") != b'$' {}
            let mut body = Vec::new();
            loop {
                match self.byte().expect("an answer") {
                    b'#' => break,
                    byte => body.push(byte),
                }
            }
            let _ = (self.byte(), self.byte());
            self.raw(b"+");
            match expand(&body).as_str() {
                "OK" => return String::from_utf8(text).unwrap(),
                body => text.extend(unhex(body.strip_prefix('O').expect("console text"))),
            }
        }
    }

    /// The registers; 64-bit general ones first, then RIP.
    #[track_caller]
    pub fn registers(&mut self) -> Registers {
        Registers(unhex(&self.ask("g")))
    }
}

/// A `g` packet.
pub struct Registers(pub Vec<u8>);

impl Registers {
    pub fn general(&self, n: usize) -> u64 {
        u64::from_le_bytes(self.0[8 * n..8 * n + 8].try_into().unwrap())
    }

    pub fn rip(&self) -> u64 {
        self.general(16)
    }
}

/// Run-length encoding undone: `*`, and a count as a character, after what is repeated.
fn expand(body: &[u8]) -> String {
    let mut text: Vec<u8> = Vec::new();
    let mut bytes = body.iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, text.last().copied()) {
            (b'*', Some(last)) => {
                let count = bytes.next().map_or(0, |n| usize::from(n) - 29);
                text.resize(text.len() + count, last);
            }
            _ => text.push(byte),
        }
    }
    String::from_utf8(text).expect("text")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2).unwrap_or(""), 16);
    (0..text.len()).step_by(2).map(|at| digits(at).unwrap_or_else(|_| panic!("{text}"))).collect()
}
