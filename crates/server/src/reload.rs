//! Files that are read again while the server runs: when one changes, on SIGHUP, and on `POST /cluster/reload`.
//!
//! What does not read well changes nothing: the server goes on with what it has, and says what is wrong. Connections that are open stay.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use cluster::{AlarmKind, Handle};
use queue::QueueMachine;
use tls::{PeerPem, PeerTls, ServerTls, Unusable};

use crate::auth::RoleTokens;

/// A file that holds a certificate, a key or tokens, in bytes; larger ones are refused.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate that ends sooner is an alarm, in seconds: 14 days.
const SOON: i64 = 14 * 24 * 3_600;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The files of a server.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Of the connections between members.
    pub peers: Option<PeerFiles>,
    /// Of the connections of clients.
    pub http: Option<HttpFiles>,
    /// Who has which role in the cluster.
    pub roles: Option<TokensFile>,
}

impl Files {
    /// Reads all of them again, and says which those are.
    ///
    /// # Errors
    /// What is wrong; each of the others was read.
    fn reload(&self) -> Result<Vec<&'static str>, Vec<String>> {
        let read = [
            self.peers.as_ref().map(|files| ("peer certificates", files.reload())),
            self.http.as_ref().map(|files| ("HTTP certificates", files.reload())),
            self.roles.as_ref().map(|file| ("tokens", file.reload())),
        ];
        let (mut done, mut wrong) = (Vec::new(), Vec::new());
        for (what, read) in read.into_iter().flatten() {
            match read {
                Ok(()) => done.push(what),
                Err(why) => wrong.push(why),
            }
        }
        if wrong.is_empty() { Ok(done) } else { Err(wrong) }
    }

    /// What tells whether one has changed: lengths, moments of change and numbers of the files.
    fn state(&self) -> Vec<(u64, i64, i64, u64)> {
        let peers = self.peers.iter().flat_map(|files| [&files.certificate, &files.key, &files.authorities]);
        let http =
            self.http.iter().flat_map(|files| [Some(&files.certificate), Some(&files.key), files.authorities.as_ref()]);
        let roles = self.roles.iter().map(|file| &file.path);
        let state = |path: &PathBuf| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.len(), file.mtime(), file.mtime_nsec(), file.ino()))
        };
        peers.chain(http.flatten()).chain(roles).map(|path| state(path).unwrap_or_default()).collect()
    }

    /// Which certificates the server shows, and when each of them ends, in seconds since 1970.
    fn ends(&self) -> Vec<(&'static str, i64)> {
        let peers = self.peers.as_ref().map(|files| ("peers", files.tls.facts().not_after));
        let clients = self.http.as_ref().map(|files| ("clients", files.tls.facts().not_after));
        peers.into_iter().chain(clients).collect()
    }

    fn are_none(&self) -> bool {
        self.peers.is_none() && self.http.is_none() && self.roles.is_none()
    }
}

/// Something else that is read again, by whoever runs the server: what it is, and how.
type Also = (&'static str, Box<dyn Fn() -> Result<(), String> + Send + Sync>);

/// Reads a server's files again.
pub struct Reload {
    files: Files,
    also: OnceLock<Also>,
    /// Held while files are read, with what they were like then.
    seen: Mutex<Vec<(u64, i64, i64, u64)>>,
}

impl Reload {
    pub(crate) fn new(files: Files) -> Reload {
        let seen = Mutex::new(files.state());
        Reload { files, also: OnceLock::new(), seen }
    }

    /// Has this done as well from now on; once.
    pub fn also(&self, what: &'static str, read: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        // Whoever came first stays.
        let _ = self.also.set((what, Box::new(read)));
    }

    /// Reads everything again, and says what that is.
    ///
    /// # Errors
    /// What is wrong, of each; everything else was read.
    pub fn now(&self) -> Result<Vec<&'static str>, Vec<String>> {
        let mut seen = self.seen.lock().expect("nothing panics while it holds this lock");
        *seen = self.files.state();
        let read = self.files.reload();
        let also = self.also.get().map(|(what, read)| (*what, read()));
        let read = match (read, also) {
            (Ok(mut done), Some((what, Ok(())))) => {
                done.push(what);
                Ok(done)
            }
            (Err(mut wrong), Some((_, Err(why)))) => {
                wrong.push(why);
                Err(wrong)
            }
            (Ok(_), Some((_, Err(why)))) => Err(vec![why]),
            (read, _) => read,
        };
        match &read {
            Ok(done) => tracing::info!(event = "server.reloaded", "read again: {}", done.join(", ")),
            Err(wrong) => {
                tracing::warn!(
                    event = "server.reload_failed",
                    "the server goes on with what it had: {}",
                    wrong.join("; ")
                );
            }
        }
        read
    }

    /// The certificates that are shown at the ports for `peers` and for `clients`, and how long each still holds, in seconds; less than 0: it
    /// has ended.
    pub fn certificates(&self) -> Vec<(&'static str, i64)> {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        self.files.ends().into_iter().map(|(port, end)| (port, end - now)).collect()
    }

    /// Reads files again when one of them has changed since it was looked at last.
    fn look(&self) {
        let has_changed = *self.seen.lock().expect("nothing panics while it holds this lock") != self.files.state();
        if has_changed {
            // It has said what is wrong.
            let _ = self.now();
        }
    }
}

/// Looks at the files from time to time, until it is dropped.
pub(crate) struct Watch {
    /// Closing it ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to look; nothing if there are no files. The node raises an alarm while a certificate ends soon.
    pub(crate) fn start(reload: Arc<Reload>, node: Handle<QueueMachine>) -> std::io::Result<Watch> {
        if reload.files.are_none() {
            return Ok(Watch { stop: None, thread: None });
        }
        let (stop, stopped) = channel::<()>();
        let look = move || {
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                reload.look();
                node.set_alarm(AlarmKind::CertExpiry, end_soon(&reload.certificates()));
            }
        };
        let thread = std::thread::Builder::new().name("codeq-reload".into()).spawn(look)?;
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
    }
}

/// What there is to say of certificates that end soon; nothing: none does.
fn end_soon(certificates: &[(&str, i64)]) -> Option<String> {
    let soon = certificates.iter().filter(|(_, left)| *left < SOON).map(|(port, left)| match *left {
        ..=0 => format!("the certificate at the port for {port} has ended: nobody connects there any more"),
        left => format!("the certificate at the port for {port} ends in {} h: renew it", left / 3_600),
    });
    let soon: Vec<String> = soon.collect();
    (!soon.is_empty()).then(|| soon.join("; "))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been logged where it happened.
            let _ = thread.join();
        }
    }
}

/// Tokens that have a role in the cluster.
#[derive(Clone, Debug)]
pub struct TokensFile {
    path: PathBuf,
    /// What was read last.
    pub tokens: Arc<RwLock<RoleTokens>>,
}

impl TokensFile {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &str) -> Result<TokensFile, String> {
        let path = PathBuf::from(path);
        let tokens = Arc::new(RwLock::new(read_tokens(&path)?));
        Ok(TokensFile { path, tokens })
    }

    fn reload(&self) -> Result<(), String> {
        let next = read_tokens(&self.path)?;
        *self.tokens.write().expect("nothing panics while it holds this lock") = next;
        Ok(())
    }
}

fn read_tokens(path: &Path) -> Result<RoleTokens, String> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    RoleTokens::read(text).map_err(|why| format!("{}, {why}", path.display()))
}

/// What encrypts the connections of clients.
#[derive(Clone, Debug)]
pub struct HttpFiles {
    certificate: PathBuf,
    key: PathBuf,
    authorities: Option<PathBuf>,
    /// What was read last.
    pub tls: Arc<ServerTls>,
}

impl HttpFiles {
    /// Reads them. With `authorities` every client must show a certificate.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn open(certificate: &str, key: &str, authorities: Option<&str>) -> Result<HttpFiles, String> {
        let paths = [certificate, key].map(PathBuf::from);
        let authorities = authorities.map(PathBuf::from);
        let [own, own_key] = read_all(&paths)?;
        let clients = authorities.as_deref().map(read).transpose()?;
        let tls = ServerTls::new(&own, &own_key, clients.as_deref()).map_err(|why| unusable(&paths, &why))?;
        let [certificate, key] = paths;
        Ok(HttpFiles { certificate, key, authorities, tls: Arc::new(tls) })
    }

    fn reload(&self) -> Result<(), String> {
        let paths = [&self.certificate, &self.key];
        let [own, own_key] = read_all(&paths)?;
        let clients = self.authorities.as_deref().map(read).transpose()?;
        self.tls.replace(&own, &own_key, clients.as_deref()).map_err(|why| unusable(&paths, &why))
    }
}

/// What encrypts the connections between members.
#[derive(Clone, Debug)]
pub struct PeerFiles {
    certificate: PathBuf,
    key: PathBuf,
    authorities: PathBuf,
    /// What was read last.
    pub tls: Arc<PeerTls>,
}

impl PeerFiles {
    /// Reads them.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn open(certificate: &str, key: &str, authorities: &str) -> Result<PeerFiles, String> {
        let paths = [certificate, key, authorities].map(PathBuf::from);
        let read = read_all(&paths)?;
        let tls = PeerTls::new(pem(&read)).map_err(|why| unusable(&paths, &why))?;
        let [certificate, key, authorities] = paths;
        Ok(PeerFiles { certificate, key, authorities, tls: Arc::new(tls) })
    }

    /// Reads them again.
    ///
    /// # Errors
    /// What is wrong with which file; nothing has changed.
    fn reload(&self) -> Result<(), String> {
        let paths = [&self.certificate, &self.key, &self.authorities];
        let read = read_all(&paths)?;
        self.tls.replace(pem(&read)).map_err(|why| unusable(&paths, &why))
    }
}

fn pem(read: &[Vec<u8>; 3]) -> PeerPem<'_> {
    let [certificate, key, authorities] = read;
    PeerPem { certificate, key, authorities }
}

fn read_all<P: AsRef<Path>, const N: usize>(paths: &[P; N]) -> Result<[Vec<u8>; N], String> {
    let mut read = [const { Vec::new() }; N];
    for (path, bytes) in paths.iter().zip(&mut read) {
        *bytes = self::read(path.as_ref())?;
    }
    Ok(read)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |cause: std::io::Error| format!("cannot read {}: {cause}", path.display());
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("{} has more than {FILE_BYTES_MAX} bytes", path.display()));
    }
    std::fs::read(path).map_err(failed)
}

fn unusable<P: AsRef<Path>>(paths: &[P], why: &Unusable) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.as_ref().display().to_string()).collect();
    format!("{} cannot be used: {why}", paths.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: 14 days before a certificate ends it is spoken of, by its port and in hours, and no sooner.
    #[test]
    fn certificates_that_end_soon_are_named() {
        assert_eq!(end_soon(&[("peers", SOON), ("clients", SOON * 20)]), None);
        assert_eq!(
            end_soon(&[("peers", SOON - 1), ("clients", SOON)]).as_deref(),
            Some("the certificate at the port for peers ends in 335 h: renew it")
        );
        let both = end_soon(&[("peers", 3_600), ("clients", 0)]).expect("both end");
        assert!(both.contains("peers ends in 1 h") && both.contains("clients has ended"), "{both}");
    }
}
