//! The files that a machine is made of: image, modules, initial RAM disk.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::error::Error;
use crate::boot::Module;
use crate::config::{Config, is_carried};
use crate::guests;

/// A file's bytes: read, or carried in the program itself.
type Content = Cow<'static, [u8]>;

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

    pub(super) fn modules(&self) -> Vec<Module<'_>> {
        self.modules.iter().map(|(data, cmdline)| Module { data, cmdline }).collect()
    }
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
    // A FIFO would make open() wait for a writer.
    let options = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).clone();
    let mut file = options.open(path).map_err(|e| refused(e.to_string()))?;
    let metadata = file.metadata().map_err(|e| refused(e.to_string()))?;
    if !metadata.is_file() {
        let kind = metadata.file_type();
        let kind = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a FIFO",
            () => "a device or a socket",
        };
        return Err(refused(format!("it is {kind}; a regular file is needed")));
    }
    let len = metadata.len();
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
