//! The control socket's server: one thread, which waits for whoever has something to say.
//!
//! A client can cost no more than its connection, one request and one answer: the next request
//! is not read before the last answer is gone. There are few connections at a time; one more
//! takes the place of the one that has been silent for longest.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::protocol::{self, LONGEST, Response};
use super::unix::Socket;
use crate::machine::remote::Remote;
use crate::machine::signals;

/// Connections at a time.
const MOST: usize = 16;

/// What an event is about: these, or the number of a connection.
const OVER: u64 = u64::MAX;
const CALLER: u64 = u64::MAX - 1;

/// A socket, before there is a machine behind it.
#[derive(Debug)]
pub struct Server(Socket);

/// The server at work; its socket goes when this does.
#[derive(Debug)]
pub struct Session {
    over: Arc<EventFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Listens, for this user alone.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Socket::bind(path).map(Self)
    }

    /// Serves on a thread of its own, until the session is dropped.
    pub fn start(self, remote: Remote) -> io::Result<Session> {
        let over = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let end = over.clone();
        let serve = move || {
            signals::block();
            let served = Hall::new(self.0, &end).and_then(|mut hall| hall.serve(&remote));
            if let Err(e) = served {
                log::warn!("control: the socket answers no more: {e}");
            }
        };
        let thread = thread::Builder::new().name("control".to_owned()).spawn(serve)?;
        Ok(Session { over, thread: Some(thread) })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.over.write(1); // fails only when 2^64 - 2 ends wait
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic has been reported
        }
    }
}

/// The socket and who is connected, by number: a higher one came, or spoke, later.
struct Hall {
    epoll: Epoll,
    socket: Socket,
    clients: BTreeMap<u64, Client>,
    next: u64,
}

impl Hall {
    fn new(socket: Socket, over: &EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let input = |number| EpollEvent::new(EventSet::IN, number);
        epoll.ctl(ControlOperation::Add, over.as_raw_fd(), input(OVER))?;
        epoll.ctl(ControlOperation::Add, socket.as_fd().as_raw_fd(), input(CALLER))?;
        Ok(Self { epoll, socket, clients: BTreeMap::new(), next: 0 })
    }

    fn serve(&mut self, remote: &Remote) -> io::Result<()> {
        let mut events = [EpollEvent::default(); MOST];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                count => count?,
            };
            for event in &events[..count] {
                match event.data() {
                    OVER => return Ok(()),
                    CALLER => self.welcome()?,
                    number => self.hear(number, remote)?,
                }
            }
        }
    }

    fn welcome(&mut self) -> io::Result<()> {
        let Some(stream) = self.socket.accept()? else { return Ok(()) };
        stream.set_nonblocking(true)?;
        if self.clients.len() == MOST {
            self.clients.pop_first(); // which closes it, and so epoll forgets it
        }
        let fd = stream.as_raw_fd();
        let number = self.seat(Client { stream, input: Vec::new(), output: Vec::new() });
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, number))
    }

    /// Gives a client the highest number.
    fn seat(&mut self, client: Client) -> u64 {
        self.next += 1;
        self.clients.insert(self.next, client);
        self.next
    }

    /// A client has spoken, or has room for more of its answer, or has gone.
    fn hear(&mut self, number: u64, remote: &Remote) -> io::Result<()> {
        let Some(mut client) = self.clients.remove(&number) else { return Ok(()) };
        if client.go_on(|line| protocol::answer(line, remote)).is_err() {
            return Ok(());
        }
        let fd = client.stream.as_raw_fd();
        // Room to send comes at once, so a request that is here already waits for no more.
        let busy = !client.output.is_empty() || client.has_request();
        let wanted = if busy { EventSet::OUT } else { EventSet::IN };
        let number = self.seat(client);
        self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(wanted, number))
    }
}

/// One connection.
struct Client {
    stream: UnixStream,
    /// What has come and is not answered yet: less than one request and one read.
    input: Vec<u8>,
    /// What is left of an answer.
    output: Vec<u8>,
}

/// The client has gone, or is to go.
struct Gone;

impl From<io::Error> for Gone {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl Client {
    /// Sends what is left of an answer, else answers one request: then it is another's turn.
    fn go_on(&mut self, answer: impl Fn(&[u8]) -> Response) -> Result<(), Gone> {
        self.send()?;
        if !self.output.is_empty() {
            return Ok(());
        }
        let is_last = !self.has_request() && self.read()?;
        let line = match self.input.iter().position(|byte| *byte == b'\n') {
            Some(end) => self.input.drain(..=end).collect(),
            // A request may be ended by the end of all.
            None if is_last && !self.input.is_empty() => std::mem::take(&mut self.input),
            None if is_last => return Err(Gone),
            None if self.input.len() > LONGEST => return self.dismiss(),
            None => return Ok(()),
        };
        self.output = protocol::line(&answer(line.trim_ascii()));
        Ok(self.send()?)
    }

    fn has_request(&self) -> bool {
        self.input.contains(&b'\n')
    }

    /// Takes what has come; is it the end?
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; LONGEST];
        match self.stream.read(&mut buffer) {
            Ok(0) => Ok(true),
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                Ok(false)
            }
            Err(e) if is_passing(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(e) if is_passing(&e) => break,
                Err(e) => return Err(e),
            }
        }
        if self.output.is_empty() {
            self.output = Vec::new(); // a table's memory goes back
        }
        Ok(())
    }

    /// Says why, and has the client go.
    fn dismiss(&mut self) -> Result<(), Gone> {
        let why = format!("a request is a line of at most {LONGEST} bytes");
        self.output = protocol::line(&Response::Error(why));
        self.send()?;
        Err(Gone)
    }
}

fn is_passing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pair() -> (Client, UnixStream) {
        let (stream, other) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        (Client { stream, input: Vec::new(), output: Vec::new() }, other)
    }

    fn long(_: &[u8]) -> Response {
        Response::Ok(json!("x".repeat(1 << 20)))
    }

    #[test]
    fn requests_in_pieces_and_several_at_once_are_answered_in_order() {
        let (mut client, mut other) = pair();
        let echo = |line: &[u8]| Response::Error(String::from_utf8_lossy(line).into_owned());
        for piece in [&b"on"[..], b"e\ntwo\nthr", b"ee\n"] {
            other.write_all(piece).unwrap();
            (0..3).for_each(|_| assert!(client.go_on(echo).is_ok()));
        }
        other.write_all(b"four").unwrap();
        assert!(client.go_on(echo).is_ok());
        other.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.go_on(echo).is_ok());
        assert!(client.go_on(echo).is_err());
        let mut said = String::new();
        let _ = other.read_to_string(&mut said); // would block at its end
        let expected =
            ["one", "two", "three", "four"].map(|it| format!("{{\"error\":\"{it}\"}}\n"));
        assert_eq!(said, expected.concat());
    }

    #[test]
    fn who_does_not_read_is_not_read_from() {
        let (mut client, mut other) = pair();
        let mut taken = 0;
        for _ in 0..1000 {
            taken += other.write(&[b'\n'; LONGEST]).unwrap_or(0);
            assert!(client.go_on(long).is_ok());
            assert!(client.input.len() <= LONGEST && client.output.len() <= (1 << 20) + 64);
        }
        assert!(!client.output.is_empty() && taken < 4 << 20);
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let (mut client, mut other) = pair();
        other.write_all(&[b'x'; 3 * LONGEST]).unwrap();
        assert!(client.go_on(long).is_ok());
        assert!(client.go_on(long).is_err());
        drop(client);
        let mut said = String::new();
        let _ = other.read_to_string(&mut said); // reset: not all that was sent was read
        assert!(said.contains("at most 4096 bytes"), "{said}");
    }
}
