//! The files that a machine is made of: image, modules, initial RAM disk.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::error::Error;
use crate::boot::{self, Module};
use crate::config::{Config, is_carried};
use crate::guests;

/// A file's bytes: read, or carried in the program itself.
type Content = Cow<'static, [u8]>;

/// Bytes of a file in which its boot protocol shows: all of any usual kernel.
const PROBED: u64 = 64 << 20;

/// All files of a machine, read once; a machine that starts again starts from these.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) image: Content,
    pub(super) initrd: Option<Content>,
    modules: Vec<(Content, String)>,
}

impl Files {
    pub(super) fn read(config: &Config) -> Result<Self, Error> {
        let read = |what, path: &Path| read(what, path, config.memory);
        let module = |file: &crate::config::ModuleFile| {
            let cmdline = match file.args.as_str() {
                "" => file.path.display().to_string(),
                args => format!("{} {args}", file.path.display()),
            };
            Ok((read("module", &file.path)?, cmdline))
        };
        config.symbols.iter().try_for_each(|file| check_symbols(&file.path))?;
        Ok(Self {
            image: read("image", &config.image)?,
            initrd: config.initrd.as_deref().map(|path| read("initrd", path)).transpose()?,
            modules: config.modules.iter().map(module).collect::<Result<_, Error>>()?,
        })
    }

    /// The same with an image that is in memory already.
    pub(super) fn with_image(config: &Config, image: Vec<u8>) -> Result<Self, Error> {
        let carried = Config { image: "@hello-long".into(), ..config.clone() };
        Ok(Self { image: image.into(), ..Self::read(&carried)? })
    }

    /// Modules that are in memory already, each with its string.
    pub(super) fn add_modules(&mut self, modules: Vec<(Vec<u8>, String)>) {
        self.modules.extend(modules.into_iter().map(|(data, string)| (data.into(), string)));
    }

    pub(super) fn modules(&self) -> Vec<Module<'_>> {
        self.modules.iter().map(|(data, cmdline)| Module { data, cmdline }).collect()
    }
}

/// Is it a file that a machine can be started from without being told how? Opens regular files
/// only (a FIFO would wait for a writer, a device may do anything), and reads no more of them than
/// `PROBED`.
///
/// # Errors
/// Those of a regular file that cannot be read.
pub fn is_image(path: &Path) -> io::Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    // It may have been replaced since.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut head = Vec::new();
    file.take(PROBED).read_to_end(&mut head)?;
    Ok(boot::probe(&head).is_ok() && !is_object(&head) && !boot::is_host_program(&head))
}

/// Is it a relocatable ELF file (System V ABI, "Object Files": `e_type` is `ET_REL`)? It is a
/// part of an image at most.
fn is_object(head: &[u8]) -> bool {
    head.starts_with(b"\x7FELF") && head.get(16..18) == Some(&[1, 0])
}

/// What an image holds that takes part in the mailbox (`guests/include/ringfence.h`): so it is
/// known before it runs that it is several tests.
const MARKER: &[u8] = b"ringfence-mailbox-1";

/// Does the image say that it takes part in the mailbox? False for what cannot be read.
pub fn has_mailbox(image: &Path) -> bool {
    let Ok(bytes) = read("image", image, u64::MAX) else { return false };
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == MARKER[0]);
    starts.into_iter().any(|(at, _)| bytes[at..].starts_with(MARKER))
}

/// Reads a regular file that is not larger than the guest's memory of `limit` bytes.
fn read(what: &'static str, path: &Path, limit: u64) -> Result<Content, Error> {
    let refused = |reason: String| Error::Read { what, path: path.to_owned(), reason };
    if is_carried(path) {
        let name = path.to_string_lossy();
        return match guests::find(&name) {
            Some(guest) => Ok(guest.image.into()),
            None => Err(refused(
                "ringfence carries no such guest; `ringfence guests` lists them".to_owned(),
            )),
        };
    }
    let mut file = open_regular(path).map_err(refused)?;
    let len = file.metadata().map_err(|e| refused(e.to_string()))?.len();
    if len > limit {
        return Err(Error::TooLarge { what, path: path.to_owned(), len, memory: limit });
    }
    let mut content = Vec::new();
    content.try_reserve_exact(len as usize).map_err(|_| Error::Host {
        doing: format!("find {len} bytes of memory for the {what} {}", path.display()),
        source: ErrorKind::OutOfMemory.into(),
    })?;
    file.read_to_end(&mut content).map_err(|e| refused(e.to_string()))?;
    Ok(content.into())
}

/// Opens a regular file; else says why not.
fn open_regular(path: &Path) -> Result<File, String> {
    // A FIFO would make open() wait for a writer.
    let options = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).clone();
    let file = options.open(path).map_err(|e| e.to_string())?;
    let kind = file.metadata().map_err(|e| e.to_string())?.file_type();
    let kind = match () {
        () if kind.is_file() => return Ok(file),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () => "a device or a socket",
    };
    Err(format!("it is {kind}; a regular file is needed"))
}

/// Looks whether it can be a file of symbols, which is not read before somebody wants names.
fn check_symbols(path: &Path) -> Result<(), Error> {
    let mut magic = [0; 4];
    let reason = match open_regular(path) {
        Ok(mut file) => match file.read_exact(&mut magic) {
            Ok(()) if magic == *b"\x7FELF" => return Ok(()),
            Err(e) if e.kind() != ErrorKind::UnexpectedEof => e.to_string(),
            _ => "it is no ELF file".to_owned(),
        },
        Err(reason) => reason,
    };
    Err(Error::Read { what: "symbols", path: path.to_owned(), reason })
}

/// The bytes of a file of symbols.
pub(super) fn read_symbols(path: &Path) -> Result<Vec<u8>, Error> {
    read("symbols", path, u64::MAX).map(Cow::into_owned)
}
