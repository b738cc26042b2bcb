//! The socket in a data directory, through which a server is asked by whoever may use the directory, and by nobody else: its mode is 0600,
//! from the moment at which it has a name.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Where the socket of a data directory is, whether a server listens there or not.
pub fn path(directory: &Path) -> PathBuf {
    directory.join("codeq.sock")
}

/// A socket that listens, and has a name until it is dropped.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl LocalSocket {
    /// Listens in a directory that this process has locked: a socket that is there is what a process that was killed has left. Accepting
    /// does not block.
    ///
    /// # Errors
    /// As the operating system says; also if the path is longer than an address of a socket may be, about 100 bytes.
    pub fn bind(directory: &Path) -> io::Result<LocalSocket> {
        let path = path(directory);
        match std::fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(LocalSocket { path, listener: UnixListener::from(socket) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to accept connections with.
    ///
    /// # Errors
    /// The process has no handles left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // It may be gone with its directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Goal: only the owner can connect, what a killed process has left is in nobody's way, and nothing is left behind.
    #[test]
    fn a_socket_is_its_owners_and_goes_with_its_server() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let name = path(folder.path());
        // A listener of the standard library leaves its name behind, like a process that was killed.
        drop(UnixListener::bind(&name).expect("it can be made"));
        assert!(name.exists());
        let socket = LocalSocket::bind(folder.path()).expect("it takes the place of the old one");
        let found = std::fs::metadata(&name).expect("it is there");
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&name).expect("it listens");
        drop(socket);
        assert!(!name.exists());
        let long = folder.path().join("x".repeat(120));
        std::fs::create_dir(&long).expect("it can be made");
        assert!(LocalSocket::bind(&long).is_err());
    }
}
