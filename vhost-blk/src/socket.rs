//! The listening socket: made so that it never replaces a live one, opened to few, removed only if it is ours.
//!
//! A crash leaves the socket file; the next start finds that nobody listens there and replaces it. Two starts at once are
//! serialized by a lock on the directory, which the system drops with the process.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use crate::options::ServerError;

/// What `sun_path` holds, without the terminating zero.
const MAX_PATH: usize = 107;
const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o660;
/// Front ends that may wait for the one before them to be gone.
const BACKLOG: i32 = 4;

/// A listening socket and the file that names it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file we made.
    identity: (u64, u64),
}

impl Listener {
    /// Makes the socket at `path`, and its directory if there is none.
    pub(crate) fn bind(path: &Path) -> Result<Self, ServerError> {
        let system = |doing, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| ServerError::System { doing, path, source }
        };
        let directory = match (path.parent(), path.file_name().map(OsStr::as_bytes)) {
            (Some(parent), Some(_)) if path.as_os_str().len() <= MAX_PATH => match parent.as_os_str().is_empty() {
                true => Path::new("."),
                false => parent,
            },
            _ => return Err(ServerError::Path { path: path.to_owned() }),
        };
        if !directory.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(directory)
                .map_err(system("create directory", directory))?;
        }
        let lock = File::open(directory).map_err(system("open directory", directory))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(io::Error::from).map_err(system("lock directory", directory))?;
        clear_stale(path)?;
        let socket = make(path).map_err(system("bind", path))?;
        let meta = std::fs::symlink_metadata(path).map_err(system("inspect", path))?;
        Ok(Self { socket: UnixListener::from(socket), path: path.to_owned(), identity: (meta.dev(), meta.ino()) })
    }

    /// Takes a waiting connection, if there is one, with the user at its other end.
    pub(crate) fn accept(&self) -> io::Result<Option<(UnixStream, u32)>> {
        match self.socket.accept() {
            Ok((stream, _)) => {
                let uid = sockopt::socket_peercred(&stream)?.uid.as_raw();
                Ok(Some((stream, uid)))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file that nobody listens on.
fn clear_stale(path: &Path) -> Result<(), ServerError> {
    let in_use = || ServerError::InUse { path: path.to_owned() };
    let system = |doing| move |source| ServerError::System { doing, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("inspect")(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(in_use()),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(system("remove stale socket"))
        }
        // EAGAIN: a full backlog, so there is a listener.
        _ => Err(in_use()),
    }
}

fn make(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Before bind: the file is born with at most this mode, whatever the umask.
    fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}
