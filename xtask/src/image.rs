//! `cargo xtask image`: the container image where no registry can be reached, made of the program and what it loads at run time.
//!
//! `dist/rootfs` becomes the root of the image and `dist/home` the folder of its data. The build has no network. Afterwards the program is
//! tried within the image: an image that this made has run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::docker::{Engine, docker, ended, logs, printed};
use crate::process::build_codeq;
use crate::repository::root;
use crate::walk::eventually;

#[derive(Args)]
pub(crate) struct ImageArgs {
    /// The program that goes into it. Absent: it is built as it is shipped.
    #[arg(long)]
    program: Option<PathBuf>,
}

/// What the image is called.
pub(crate) const TAGS: [&str; 2] = ["codeq:latest", "codeq:dev"];

/// Bytes of the largest image that is worth its name.
pub(crate) const IMAGE_BYTES_MAX: u64 = 60 << 20;

/// How long the server in the image may take until it is ready.
const READY_MAX: Duration = Duration::from_secs(20);

/// Where the C library looks for certificates of authorities on most systems.
const AUTHORITIES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Whoever the program runs as in the image.
pub(crate) const USER: u32 = 65532;

/// The user of the image, without a password, a shell or rights.
const PASSWD: &str = "root:x:0:0:root:/:/nologin\ncodeq:x:65532:65532:codeq:/var/lib/codeq:/nologin\n";
const GROUP: &str = "root:x:0:\ncodeq:x:65532:\n";
/// Names are looked up in the container's own table first, then where its network says.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Libraries that the C library loads by itself when a name is looked up. Newer ones have them built in.
const NAME_SERVICES: [&str; 3] = ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"];

/// Makes the image and tries it.
///
/// # Errors
/// It cannot be made, does not work, or is too large.
pub(crate) fn run(args: &ImageArgs) -> Result<()> {
    let program = args.program.clone().map_or_else(build_codeq, Ok)?;
    let _engine = Engine::running()?;
    build(&program)?;
    for (path, bytes) in files(&root().join("dist/rootfs"))? {
        println!("{bytes:>10}  /{}", path.display());
    }
    check()?;
    let bytes: u64 = docker(&["image", "inspect", "--format", "{{.Size}}", TAGS[0]])?.trim().parse()?;
    println!("{}: {:.1} MiB", TAGS.join(", "), bytes as f64 / f64::from(1 << 20));
    ensure!(bytes <= IMAGE_BYTES_MAX, "the image has {bytes} bytes; {IMAGE_BYTES_MAX} are the most");
    Ok(())
}

/// Makes the image; Docker must run.
///
/// # Errors
/// Something that belongs into it is missing, or the build fails.
pub(crate) fn build(program: &Path) -> Result<()> {
    let dist = root().join("dist");
    if dist.exists() {
        fs::remove_dir_all(&dist).with_context(|| format!("cannot remove {}", dist.display()))?;
    }
    let rootfs = Rootfs(dist.join("rootfs"));
    rootfs.fill(program)?;
    for folder in ["pebble", "artifacts"] {
        fs::create_dir_all(dist.join("home").join(folder))?;
    }
    let mut command = Command::new("docker");
    command.args(["build", "--network", "none", "--file", "deploy/Dockerfile.scratch"]).current_dir(root());
    printed(command.args(TAGS.iter().flat_map(|tag| ["--tag", tag])).arg(".")).map(|_| ())
}

/// The root of an image to be.
struct Rootfs(PathBuf);

impl Rootfs {
    fn fill(&self, program: &Path) -> Result<()> {
        // Lines of panics need the names of functions; the rest of what debuggers want is four fifths of the file.
        let codeq = self.place("/usr/local/bin/codeq")?;
        printed(Command::new("strip").arg("--strip-debug").arg("-o").arg(&codeq).arg(program))?;
        let libraries = libraries(program)?;
        for library in &libraries {
            self.copy(library, library)?;
        }
        let libc = libraries.iter().find(|path| path.ends_with("libc.so.6")).context("the program has no C library")?;
        let folder = libc.parent().context("a library lies in a folder")?;
        for service in NAME_SERVICES.map(|name| folder.join(name)).iter().filter(|path| path.exists()) {
            self.copy(service, service)?;
        }
        let authorities = AUTHORITIES.iter().map(Path::new).find(|path| path.exists());
        let authorities = authorities.context("this machine has no certificates of authorities (ca-certificates)")?;
        self.copy(authorities, Path::new(AUTHORITIES[0]))?;
        self.copy(&root().join("deploy/image/codeq.toml"), Path::new("/etc/codeq/codeq.toml"))?;
        for (path, text) in [("/etc/passwd", PASSWD), ("/etc/group", GROUP), ("/etc/nsswitch.conf", NSSWITCH)] {
            fs::write(self.place(path)?, text)?;
        }
        let temporary = self.0.join("tmp");
        fs::create_dir_all(&temporary)?;
        Ok(fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777))?)
    }

    /// Where a path of the image is here; the folders above it are made.
    fn place(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.0.join(path.as_ref().strip_prefix("/").context("paths of an image begin with a slash")?);
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        Ok(path)
    }

    /// A file of this machine, and not what points at it.
    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        fs::copy(from, self.place(to)?).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }
}

/// The loader and the shared libraries of a program, by the paths at which it looks for them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = printed(Command::new("ldd").arg(program))?;
    if let Some(line) = listed.lines().find(|line| line.contains("not found")) {
        bail!("the program lacks {}", line.trim());
    }
    Ok(paths_of(&listed))
}

/// What `ldd` says: `name => path (address)`, `path (address)` for the loader, and only a name for what the kernel brings.
fn paths_of(listed: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let found = line.split_once("=>").map_or(line, |(_, path)| path);
        found.split_whitespace().next().filter(|path| path.starts_with('/')).map(PathBuf::from)
    };
    listed.lines().filter_map(path).collect()
}

/// Every file below a folder with its size, by path.
fn files(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let entry = entry?;
            let (path, about) = (entry.path(), entry.metadata()?);
            if about.is_dir() {
                folders.push(path);
            } else {
                found.push((path.strip_prefix(folder)?.to_owned(), about.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Tries the program within the image, without a network and with a root that cannot be written.
fn check() -> Result<()> {
    let image = TAGS[0];
    let alone = ["--network", "none", "--read-only", "--cap-drop", "ALL"];
    let run = |more: &[&str], arguments: &[&str]| {
        let mut command = Command::new("docker");
        ended(command.args(["run", "--rm"]).args(alone).args(more).arg(image).args(arguments))
    };
    let version = run(&[], &["version"])?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    ensure!(version.starts_with("codeq "), "the program says {version:?} when asked for its version");
    println!("in the image: {version}");

    // Nobody listens there: whoever is refused has found the address.
    let asked = ["health", "--live", "--endpoints", "http://a-name-of-this-container:9"];
    let named = run(&["--add-host", "a-name-of-this-container:127.0.0.1"], &asked)?;
    let said = String::from_utf8_lossy(&named.stderr).into_owned();
    ensure!(said.contains("refused"), "a name is not found: {said}");
    let unknown = String::from_utf8_lossy(&run(&[], &asked)?.stderr).into_owned();
    ensure!(!unknown.contains("refused"), "a name that nobody has is found: {unknown}");
    println!("in the image: names are found");

    let volume = ["--volume", "/var/lib/codeq"];
    let container = Container::create(&[&alone[..], &volume, &[image]].concat())?;
    let authorities = container.file(AUTHORITIES[0])?.matches("BEGIN CERTIFICATE").count();
    ensure!(authorities > 0, "there are no certificates of authorities");
    println!("in the image: {authorities} certificates of authorities");

    let first = container.serve()?;
    let again = container.serve()?;
    ensure!(first == again, "the node is {first} and, after a restart, {again}");
    println!("in the image: a data directory made and opened again, by node {first}");
    Ok(())
}

/// A container of the image, which is gone when this is dropped.
struct Container(String);

impl Container {
    fn create(arguments: &[&str]) -> Result<Container> {
        Ok(Container(docker(&[&["create"], arguments].concat())?.trim().to_owned()))
    }

    /// The text of a file in it.
    fn file(&self, path: &str) -> Result<String> {
        let copied = root().join("dist/copied");
        docker(&["cp", "--follow-link", &format!("{}:{path}", self.0), &copied.display().to_string()])?;
        let text = fs::read_to_string(&copied)?;
        fs::remove_file(&copied)?;
        Ok(text)
    }

    /// Starts the server, waits until it is ready, asks for its id, and stops it.
    fn serve(&self) -> Result<String> {
        docker(&["start", &self.0])?;
        let asked = eventually(READY_MAX, || docker(&["exec", &self.0, "codeq", "health", "--ready"]));
        asked.with_context(|| logs(&self.0, None).unwrap_or_default().join("\n"))?;
        let members: Value = serde_json::from_str(&docker(&["exec", &self.0, "codeq", "members", "-o", "json"])?)?;
        docker(&["stop", &self.0])?;
        let status = docker(&["inspect", "--format", "{{.State.ExitCode}}", &self.0])?;
        ensure!(status.trim() == "0", "the server has ended with {}", status.trim());
        Ok(members["nodes"][0]["id"].as_str().context("a node has an id")?.to_owned())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may be gone already, which is all that is wanted.
        let _ = docker(&["rm", "--force", "--volumes", &self.0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: from what `ldd` prints come the loader and the libraries, and not what has no file.
    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let printed = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007e)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007d)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(paths_of(printed), expected);
        assert!(paths_of("\tstatically linked\n").is_empty());
    }
}
