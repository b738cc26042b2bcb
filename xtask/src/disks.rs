//! Small file systems, each in a file: disks that can be filled up, and that can break.
//!
//! Mounting takes root. Where it may not be done, whoever asks is told so, and goes without.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;

use crate::docker::printed;

/// Written at a time.
const PIECE: usize = 64 << 10;

/// A mounted file system, which is gone when this is dropped.
pub(crate) struct Disk {
    mounted_at: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Makes a disk of so many bytes, seen at `folder`. Nothing: none may be mounted here.
    ///
    /// # Errors
    /// There is no room for it, or the tools to make one are missing.
    pub(crate) fn mount(folder: PathBuf, bytes: u64) -> Result<Option<Disk>> {
        std::fs::create_dir_all(&folder)?;
        let image = folder.with_extension("img");
        File::create(&image)?.set_len(bytes)?;
        // Nothing of it is set aside for root, and a file system that breaks does not take the machine with it.
        let mut make = Command::new("mkfs.ext4");
        printed(make.args(["-q", "-m", "0", "-e", "remount-ro"]).arg(&image))?;
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&folder).stderr(Stdio::null());
        Ok(mount.status().is_ok_and(|status| status.success()).then_some(Disk { mounted_at: folder, image }))
    }

    /// Where it is seen.
    pub(crate) fn folder(&self) -> &Path {
        &self.mounted_at
    }

    fn ballast(&self) -> PathBuf {
        self.mounted_at.join("ballast")
    }

    /// Takes all space that is left, but for so many bytes; with 0 until nothing more can be written.
    ///
    /// # Errors
    /// The disk fails in another way than by being full.
    pub(crate) fn fill(&self, left: u64) -> Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast())?;
        let free = statvfs(&self.mounted_at)?;
        let free = free.blocks_available() * free.fragment_size();
        let taken = if left == 0 { u64::MAX } else { free.saturating_sub(left) };
        let zeros = std::io::repeat(0).take(taken);
        let filled = std::io::copy(&mut std::io::BufReader::with_capacity(PIECE, zeros), &mut ballast);
        let is_full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
        match filled.and_then(|_| ballast.flush()).and_then(|()| ballast.sync_all()) {
            Err(error) if !is_full(&error) => Err(error).context("the ballast"),
            _ => Ok(()),
        }
    }

    /// Gives back what was taken.
    ///
    /// # Errors
    /// Nothing was.
    pub(crate) fn make_room(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }

    /// From now on nothing can be written, to open files neither, as when a disk breaks.
    ///
    /// # Errors
    /// The operating system does not do it.
    pub(crate) fn make_read_only(&self) -> Result<()> {
        let mut command = Command::new("mount");
        let status = command.args(["-o", "remount,abort"]).arg(&self.mounted_at).status()?;
        ensure!(status.success(), "{} cannot be made read-only", self.mounted_at.display());
        Ok(())
    }
}

impl Disk {
    /// From now on whatever is written waits, as on a disk that does not answer, until what this returns is dropped.
    ///
    /// # Errors
    /// The operating system does not do it.
    pub(crate) fn freeze(&self) -> Result<Frozen<'_>> {
        printed(Command::new("fsfreeze").arg("--freeze").arg(&self.mounted_at))?;
        Ok(Frozen(self))
    }
}

/// A disk that does not answer.
pub(crate) struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // If it is not frozen any more, all is well.
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0.mounted_at).status();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Left behind, it is a file among the build products.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted_at).status();
        let _ = std::fs::remove_file(&self.image);
    }
}
