//! A disk that forgets what was not synced.
//!
//! A file has two images: what a running process reads, and what would be there after a loss of power. A sync copies the one into the
//! other. A crash lets any part of the unsynced sectors survive. Names (creation, renaming, removal) have the same two images; a crash
//! lets a prefix of the unsynced changes survive, as a journalling file system does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use base::rng::SplitMix;
use storage::disk::{Disk, DiskFile};

/// Bytes that are written whole or not at all.
const SECTOR: usize = 512;

/// A simulated directory. Clones are the same directory.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

/// An open file of a [`SimDisk`].
pub struct SimFile {
    disk: SimDisk,
    number: usize,
}

#[derive(Default)]
struct State {
    /// By number; those that a name leads to, or did before a crash.
    files: BTreeMap<usize, Image>,
    created: usize,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes of names since they were synced last: the names as they were after each of them.
    unsynced_names: Vec<BTreeMap<String, usize>>,
    /// How many more syncs succeed; absent: all.
    syncs_left: Option<u64>,
    /// How many more writes succeed; absent: all.
    writes_left: Option<u64>,
    /// No file can grow and none can be made.
    full: bool,
    /// A write or a sync has failed since the last crash.
    has_failed: bool,
    syncs: u64,
    /// The last sync lasts until [`SimDisk::end_sync`].
    lasts: bool,
    /// The file whose sync is not over.
    syncing: Option<usize>,
}

#[derive(Clone, Default)]
struct Image {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors in which the two differ.
    unsynced: BTreeSet<usize>,
    /// Those of them that a sync under way is about.
    syncing: BTreeSet<usize>,
}

/// Which unsynced sectors survive a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None.
    Nothing,
    /// All: the process died, the machine did not.
    Everything,
    /// The first ones, in the order of the file, up to a drawn one.
    Prefix,
    /// The last ones, from a drawn one on.
    Suffix,
    /// Each by a coin of its own.
    Any,
}

impl SimDisk {
    /// An empty directory.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// Ends the process, and with it what was only in memory: each file keeps its durable image and the surviving sectors.
    ///
    /// Files opened before belong to the dead process and must not be used any more.
    pub fn crash(&self, survival: Survival, rng: &mut SplitMix) {
        let mut state = self.state();
        state.lasts = false;
        state.syncing = None;
        let steps = state.unsynced_names.len() as u64;
        let kept = match survival {
            Survival::Nothing => 0,
            Survival::Everything => steps,
            _ => rng.below(steps + 1),
        };
        if kept > 0 {
            state.durable_names = state.unsynced_names[kept as usize - 1].clone();
        }
        state.unsynced_names.clear();
        state.names = state.durable_names.clone();
        for file in state.files.values_mut() {
            file.crash(survival, rng);
        }
        state.syncs_left = None;
        state.writes_left = None;
        state.has_failed = false;
        state.drop_unnamed();
    }

    /// From now on a sync takes time: of all that are asked for before [`SimDisk::end_sync`] the last one is not over until then, and a crash
    /// before that may undo it.
    pub fn begin_sync(&self) {
        self.state().lasts = true;
    }

    /// The last sync is over.
    pub fn end_sync(&self) {
        let mut state = self.state();
        state.lasts = false;
        state.finish_sync();
    }

    /// Whether a write or a sync has failed since the last crash.
    pub fn has_failed(&self) -> bool {
        self.state().has_failed
    }

    /// No failure is to come any more.
    pub fn heal(&self) {
        let mut state = self.state();
        state.syncs_left = None;
        state.writes_left = None;
        state.full = false;
    }

    /// Leaves no space, or makes room again. What fits into files that exist is still written.
    pub fn fill(&self, full: bool) {
        self.state().full = full;
    }

    /// Whether there is no space.
    pub fn is_full(&self) -> bool {
        self.state().full
    }

    /// The file whose name begins so and of which something would be lost in a loss of power now, its name included, if there is one.
    pub fn unsynced(&self, prefix: &str) -> Option<String> {
        let state = self.state();
        let mut files = state.names.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        let lost = |(name, number): &(&String, &usize)| {
            state.durable_names.get(*name) != Some(number) || !state.files[*number].unsynced.is_empty()
        };
        files.find(lost).map(|(name, _)| name.clone())
    }

    /// The lengths of all files.
    pub fn lengths(&self) -> Vec<(String, u64)> {
        let state = self.state();
        state.names.iter().map(|(name, number)| (name.clone(), state.files[number].cached.len() as u64)).collect()
    }

    /// Lets `syncs` more syncs succeed; the one after that fails, and what it should have made durable is lost for good although later
    /// syncs claim success.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.state().syncs_left = Some(syncs);
    }

    /// Lets `writes` more writes succeed and fails the one after that.
    pub fn fail_write_after(&self, writes: u64) {
        self.state().writes_left = Some(writes);
    }

    /// Flips one bit of a file at rest.
    ///
    /// # Panics
    /// There is no such file or bit.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) {
        let mut state = self.state();
        let number = state.names[name];
        let file = state.file(number);
        for image in [&mut file.cached, &mut file.durable] {
            image[offset as usize] ^= 1 << bit;
        }
    }

    /// Overwrites part of a file at rest.
    ///
    /// # Panics
    /// There is no such file, or it is shorter.
    pub fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        let number = state.names[name];
        let file = state.file(number);
        for image in [&mut file.cached, &mut file.durable] {
            image[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// The bytes of a file as a running process reads them.
    ///
    /// # Panics
    /// There is no such file.
    pub fn contents(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.files[&state.names[name]].cached.clone()
    }

    /// How many syncs of files have been asked for.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl State {
    /// Forgets what no name leads to any more.
    fn drop_unnamed(&mut self) {
        let named: BTreeSet<usize> = self.names.values().chain(self.durable_names.values()).copied().collect();
        self.files.retain(|number, _| named.contains(number));
    }

    fn finish_sync(&mut self) {
        let Some(file) = self.syncing.take().and_then(|number| self.files.get_mut(&number)) else { return };
        for sector in std::mem::take(&mut file.syncing) {
            file.make_durable(sector);
        }
    }

    fn file(&mut self, number: usize) -> &mut Image {
        // What is open may have lost its last name.
        self.files.entry(number).or_default()
    }

    fn change_names(&mut self, change: impl FnOnce(&mut BTreeMap<String, usize>)) {
        self.finish_sync();
        change(&mut self.names);
        self.unsynced_names.push(self.names.clone());
    }
}

impl Image {
    fn crash(&mut self, survival: Survival, rng: &mut SplitMix) {
        self.unsynced.append(&mut self.syncing);
        let unsynced: Vec<usize> = std::mem::take(&mut self.unsynced).into_iter().collect();
        let drawn = rng.below(unsynced.len() as u64 + 1) as usize;
        for (place, sector) in unsynced.into_iter().enumerate() {
            let survives = match survival {
                Survival::Nothing => false,
                Survival::Everything => true,
                Survival::Prefix => place < drawn,
                Survival::Suffix => place >= drawn,
                Survival::Any => rng.one_in(2),
            };
            if survives {
                self.make_durable(sector);
            }
        }
        self.cached = self.durable.clone();
    }

    fn make_durable(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.cached.len());
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(&self.cached[start..end]);
    }
}

fn spent(left: &mut Option<u64>) -> bool {
    match left {
        None => false,
        Some(0) => {
            *left = None;
            true
        }
        Some(more) => {
            *more -= 1;
            false
        }
    }
}

/// What the operating system says when a device fails: EIO.
fn device_error() -> io::Error {
    io::Error::from_raw_os_error(5)
}

/// ENOSPC.
fn no_space() -> io::Error {
    io::Error::from_raw_os_error(28)
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let number = *self.state().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { disk: self.clone(), number })
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if state.full {
            state.has_failed = true;
            return Err(no_space());
        }
        let number = state.created;
        state.created += 1;
        state.files.insert(number, Image::default());
        state.change_names(|names| {
            names.insert(name.into(), number);
        });
        Ok(SimFile { disk: self.clone(), number })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let number = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change_names(|names| {
            names.remove(from);
            names.insert(to.into(), number);
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(|names| {
            names.remove(name);
        });
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state();
        state.finish_sync();
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        state.drop_unnamed();
        Ok(())
    }

    fn describe(&self, name: &str) -> String {
        format!("sim/{name}")
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.state().file(self.number).cached.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let start = offset as usize;
        let bytes = state.file(self.number).cached.get(start..start + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        if spent(&mut state.writes_left) {
            state.has_failed = true;
            return Err(device_error());
        }
        if state.full && state.file(self.number).cached.len() < offset as usize + bytes.len() {
            state.has_failed = true;
            return Err(no_space());
        }
        let file = state.file(self.number);
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if file.cached.len() < end {
            file.cached.resize(end, 0);
        }
        file.cached[start..end].copy_from_slice(bytes);
        file.unsynced.extend(start / SECTOR..end.div_ceil(SECTOR));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.finish_sync();
        state.syncs += 1;
        let fails = spent(&mut state.syncs_left);
        state.has_failed |= fails;
        let lasts = state.lasts;
        if lasts && !fails {
            state.syncing = Some(self.number);
        }
        let file = state.file(self.number);
        let unsynced = std::mem::take(&mut file.unsynced);
        if fails {
            return Err(device_error());
        }
        if lasts {
            file.syncing = unsynced;
            return Ok(());
        }
        for sector in unsynced {
            file.make_durable(sector);
        }
        Ok(())
    }
}
