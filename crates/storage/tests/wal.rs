//! The log over a disk that loses, tears and damages what was not synced, and what was.

use std::collections::BTreeMap;

use base::log::{Entry, HardState};
use base::rng::SplitMix;
use base::{Index, ShardId, Term};
use bytes::Bytes;
use sim::disk::{SimDisk, Survival};
use storage::StorageError;
use storage::wal::{Options, Recovered, Wal};

const SMALL: Options = Options { segment_bytes: 16 << 10 };
/// More than any test writes.
const LARGE: Options = Options { segment_bytes: 256 << 10 };
const FIRST: &str = "wal-0000000000000001.log";

fn entry(index: u64, data: &[u8]) -> Entry {
    Entry { index: Index(index), term: Term(1), data: Bytes::copy_from_slice(data) }
}

fn open(disk: &SimDisk, options: Options) -> (Wal<SimDisk>, Recovered) {
    Wal::open(disk.clone(), options).expect("the log opens")
}

/// Indexes that a shard's log holds.
fn indexes(recovered: &Recovered, shard: u16) -> Vec<u64> {
    let log = recovered.shards.get(&ShardId(shard));
    log.map(|log| log.entries.iter().map(|entry| entry.index.0).collect()).unwrap_or_default()
}

fn damage(disk: &SimDisk) -> (String, Option<u64>) {
    match Wal::open(disk.clone(), LARGE).map(|_| ()) {
        Err(StorageError::Damaged { file, offset, .. }) => (file, offset),
        other => panic!("the damage was not noticed: {other:?}"),
    }
}

#[test]
fn what_was_synced_reads_back_with_its_hard_state() {
    let disk = SimDisk::new();
    let (mut wal, nothing) = open(&disk, LARGE);
    assert_eq!(nothing, Recovered::default());
    wal.append(ShardId(0), entry(2, b"two"));
    wal.append(ShardId(3), entry(2, &[7; 5000]));
    wal.append_hard_state(ShardId(3), HardState { term: Term(4), vote: 9, commit: Index(2) });
    wal.flush(true).expect("it is written");
    wal.append(ShardId(0), entry(3, b""));
    wal.flush(true).expect("it is written");
    disk.crash(Survival::Nothing, &mut SplitMix::new(1));

    let (_, recovered) = open(&disk, LARGE);
    assert_eq!(recovered.shards[&ShardId(0)].entries, [entry(2, b"two"), entry(3, b"")]);
    let third = &recovered.shards[&ShardId(3)];
    assert_eq!(third.entries, [entry(2, &[7; 5000])]);
    assert_eq!(third.hard_state, HardState { term: Term(4), vote: 9, commit: Index(2) });
    assert_eq!(recovered.torn_bytes, 0);
}

#[test]
fn an_entry_written_again_replaces_what_stood_there_and_behind() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    for index in 2..6 {
        wal.append(ShardId(0), entry(index, b"old"));
    }
    wal.append(ShardId(0), Entry { term: Term(2), ..entry(4, b"new") });
    wal.flush(true).expect("it is written");
    let (_, recovered) = open(&disk, LARGE);
    let log = &recovered.shards[&ShardId(0)];
    assert_eq!(indexes(&recovered, 0), [2, 3, 4]);
    assert_eq!(log.last(), Some((Index(4), Term(2))));
}

/// A snapshot takes the place of a shard's log: what stood before it is gone, what follows it need not continue what stood before.
#[test]
fn a_snapshot_begins_a_log_anew() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    for index in 2..6 {
        wal.append(ShardId(0), entry(index, b"old"));
        wal.append(ShardId(1), entry(index, b"other"));
    }
    wal.restart(ShardId(0), Index(100), Term(3));
    wal.append(ShardId(0), Entry { term: Term(3), ..entry(101, b"new") });
    wal.flush(true).expect("it is written");
    let (_, mut recovered) = open(&disk, LARGE);
    assert_eq!((indexes(&recovered, 0), indexes(&recovered, 1)), (vec![101], vec![2, 3, 4, 5]));
    // A crash before that was written leaves the old log beside the new checkpoint.
    let log = recovered.shards.get_mut(&ShardId(1)).expect("it has entries");
    let mut same = log.clone();
    assert!(same.drop_until(Index(3), Term(1)));
    assert_eq!(same.entries.len(), 2, "they follow the checkpoint");
    assert!(!log.drop_until(Index(3), Term(2)));
    assert!(log.entries.is_empty(), "they follow another entry 3 than the checkpoint's");
}

/// Many sequences of writes, syncs and crashes of every kind: what was synced is there, what follows it is a prefix of what was written,
/// and the log can always be opened.
/// Goal: where a crash has left a checkpoint that came as a snapshot and the log before it, what follows the checkpoint reads back once the
/// log says that it begins anew, and would be taken for damage, or go with what the snapshot replaced, if it did not.
#[test]
fn a_log_that_does_not_lead_to_the_checkpoint_must_begin_anew() {
    let (snapshot, term) = (Index(9), Term(2));
    for last in [5, 12] {
        let disk = SimDisk::new();
        let (mut wal, _) = open(&disk, LARGE);
        (2..=last).for_each(|index| wal.append(ShardId(0), entry(index, b"old")));
        wal.flush(true).expect("it is written");
        let next = Entry { index: Index(10), term, data: Bytes::from_static(b"new") };
        for restarts in [true, false] {
            let copy = SimDisk::new();
            copy_files(&disk, &copy);
            let (mut wal, mut recovered) = open(&copy, LARGE);
            assert!(!recovered.shards.entry(ShardId(0)).or_default().drop_until(snapshot, term));
            if restarts {
                wal.restart(ShardId(0), snapshot, term);
            }
            wal.append(ShardId(0), next.clone());
            wal.flush(true).expect("it is written");
            let entries = Wal::open(copy, LARGE).map(|(_, mut recovered)| {
                let log = recovered.shards.entry(ShardId(0)).or_default();
                log.drop_until(snapshot, term).then(|| log.entries.clone())
            });
            assert_eq!(entries.ok().flatten().is_some_and(|entries| entries == [next.clone()]), restarts, "{last}");
        }
    }
}

#[test]
fn no_crash_loses_what_was_synced_or_invents_anything() {
    for seed in 0..400 {
        let mut rng = SplitMix::new(seed);
        let disk = SimDisk::new();
        let mut written: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
        let mut synced: BTreeMap<u16, usize> = BTreeMap::new();
        for _ in 0..4 {
            let (mut wal, recovered) = open(&disk, SMALL);
            for shard in 0..3 {
                let found = recovered.shards.get(&ShardId(shard)).map(|log| log.entries.clone()).unwrap_or_default();
                let all = written.entry(shard).or_default();
                assert!(found.len() >= synced.get(&shard).copied().unwrap_or(0), "seed {seed}: a synced entry is lost");
                assert!(found.len() <= all.len(), "seed {seed}: an entry from nowhere");
                for (place, found) in found.iter().enumerate() {
                    assert_eq!((found.index.0, &found.data[..]), (place as u64 + 2, &all[place][..]), "seed {seed}");
                }
                // What was written and is lost never happened.
                all.truncate(found.len());
                synced.insert(shard, found.len());
            }
            for _ in 0..rng.below(40) {
                for _ in 0..=rng.below(4) {
                    let shard = rng.below(3) as u16;
                    let data = vec![rng.next_u64() as u8; rng.below(1500) as usize];
                    let all = written.entry(shard).or_default();
                    all.push(data.clone());
                    wal.append(ShardId(shard), entry(all.len() as u64 + 1, &data));
                }
                let sync = rng.below(3) > 0;
                wal.flush(sync).expect("the disk does not fail");
                if sync {
                    synced = written.iter().map(|(shard, all)| (*shard, all.len())).collect();
                }
                if rng.one_in(4) {
                    wal.settle().expect("the disk does not fail");
                }
            }
            let survivals =
                [Survival::Nothing, Survival::Everything, Survival::Prefix, Survival::Suffix, Survival::Any];
            disk.crash(survivals[rng.below(5) as usize], &mut rng);
        }
    }
}

#[test]
fn a_torn_tail_is_cut_and_never_read_again() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    wal.append(ShardId(0), entry(2, b"kept"));
    wal.flush(true).expect("it is written");
    // Three sectors, of which a crash keeps the last ones only.
    wal.append(ShardId(0), entry(3, &[1; 600]));
    wal.append(ShardId(0), entry(4, &[2; 600]));
    wal.flush(false).expect("it is written");
    wal.append(ShardId(0), entry(5, b"a write of its own, behind the hole"));
    wal.flush(false).expect("it is written");
    for seed in 0..20 {
        let copy = SimDisk::new();
        copy_files(&disk, &copy);
        copy.overwrite(FIRST, 3 * 512, &[0; 512]);
        let (mut wal, recovered) = open(&copy, LARGE);
        assert_eq!(indexes(&recovered, 0), [2], "seed {seed}");
        assert!(recovered.torn_bytes > 0);
        wal.append(ShardId(0), entry(3, b"other"));
        wal.flush(true).expect("it is written");
        let (_, recovered) = open(&copy, LARGE);
        assert_eq!(indexes(&recovered, 0), [2, 3]);
        assert_eq!(recovered.shards[&ShardId(0)].entries[1].data, &b"other"[..]);
    }
}

#[test]
fn what_a_restart_has_read_is_durable() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    wal.append(ShardId(0), entry(2, b"written, not synced"));
    wal.flush(false).expect("it is written");
    // The process dies and another one reads what the machine still has in memory; then the power fails.
    drop(wal);
    let (_, recovered) = open(&disk, LARGE);
    assert_eq!(indexes(&recovered, 0), [2]);
    disk.crash(Survival::Nothing, &mut SplitMix::new(1));
    let (_, recovered) = open(&disk, LARGE);
    assert_eq!(indexes(&recovered, 0), [2]);
}

#[test]
fn zeros_count_as_the_end() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    wal.append(ShardId(0), entry(2, b"kept"));
    wal.flush(true).expect("it is written");
    wal.append(ShardId(0), entry(3, &[9; 2000]));
    wal.flush(false).expect("it is written");
    disk.overwrite(FIRST, 3 * 512, &[0; 4096]);
    let (_, recovered) = open(&disk, LARGE);
    assert_eq!(indexes(&recovered, 0), [2]);
}

/// Goal: a log that settles shows that its last write was synced, also if a hard state still waits to be written.
#[test]
fn a_hard_state_that_waits_shows_what_was_synced_before_it() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    wal.append(ShardId(0), entry(2, &[2; 700]));
    wal.flush(true).expect("it is written");
    wal.append_hard_state(ShardId(0), HardState { term: Term(1), vote: 0, commit: Index(2) });
    wal.settle().expect("it is written");
    drop(wal);
    disk.flip_bit(FIRST, 512 + 300, 0);
    let opened = Wal::open(disk, LARGE).map(|(_, recovered)| recovered);
    assert!(matches!(opened, Err(StorageError::Damaged { .. })), "{opened:?}");
}

/// Goal: a segment does not begin with a commit index that counts entries which are about to be written to it. Method: a write of both that
/// begins one, with everything behind its first sector lost.
#[test]
fn a_segment_begins_with_what_was_written_before() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, SMALL);
    let state = |commit| HardState { term: Term(1), vote: 3, commit: Index(commit) };
    wal.append(ShardId(0), entry(2, &[1; 9_000]));
    wal.append_hard_state(ShardId(0), state(2));
    wal.flush(true).expect("it is written");
    wal.append(ShardId(0), entry(3, &[1; 9_000]));
    wal.append_hard_state(ShardId(0), state(3));
    wal.flush(false).expect("it is written");
    drop(wal);
    disk.overwrite("wal-0000000000000002.log", 1_024, &[0; 15 << 10]);
    let (_, recovered) = open(&disk, SMALL);
    assert_eq!(indexes(&recovered, 0), [2]);
    assert_eq!(recovered.shards[&ShardId(0)].hard_state, state(2));
}

/// Goal: a segment is freed only when the hard states in the last one are durable.
#[test]
fn a_vote_outlives_the_segment_that_it_was_written_to() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, SMALL);
    let state = HardState { term: Term(7), vote: 3, commit: Index(1) };
    wal.append_hard_state(ShardId(0), state);
    wal.flush(true).expect("it is written");
    for index in 2..19 {
        wal.append(ShardId(0), entry(index, &[1; 700]));
        wal.flush(false).expect("it is written");
    }
    assert!(
        disk.lengths().iter().filter(|(name, _)| name.starts_with("wal-")).count() > 1,
        "another segment was begun"
    );
    wal.release(&BTreeMap::from([(ShardId(0), Index(19))])).expect("the disk does not fail");
    drop(wal);
    disk.crash(Survival::Nothing, &mut SplitMix::new(1));
    let (_, recovered) = open(&disk, SMALL);
    assert_eq!(recovered.shards[&ShardId(0)].hard_state, state);
}

#[test]
fn a_flipped_bit_below_a_later_mark_is_damage() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    for index in 2..12 {
        wal.append(ShardId(0), entry(index, &[index as u8; 700]));
        wal.flush(true).expect("it is written");
    }
    wal.settle().expect("the mark is written");
    drop(wal);
    let (_, whole) = open(&disk, LARGE);
    assert_eq!(indexes(&whole, 0), (2..12).collect::<Vec<_>>());

    // Every bit of the log counts: those of the header, of the first and of the last entry, and the filling between two writes.
    let mut rng = SplitMix::new(5);
    for _ in 0..300 {
        let copy = SimDisk::new();
        copy_files(&disk, &copy);
        let offset = rng.below(512 + 512 + 10 * 1024);
        copy.flip_bit(FIRST, offset, rng.below(8) as u8);
        let opened = Wal::open(copy.clone(), LARGE).map(|(_, recovered)| recovered);
        match opened {
            Err(StorageError::Damaged { file, .. }) => assert_eq!(file, format!("sim/{FIRST}")),
            // What no checksum covers is not read either: the rest of the header's sector, and what fills the last write.
            Ok(recovered) => {
                assert_eq!(indexes(&recovered, 0), indexes(&whole, 0), "a flip at {offset} went unnoticed")
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn damage_names_the_file_and_the_offset() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    for index in 2..5 {
        wal.append(ShardId(0), entry(index, &[1; 100]));
        wal.flush(true).expect("it is written");
    }
    disk.flip_bit(FIRST, 2 * 512 + 100, 3);
    assert_eq!(damage(&disk), (format!("sim/{FIRST}"), Some(2 * 512)));
}

#[test]
fn a_missing_segment_is_damage() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, SMALL);
    for index in 2..60 {
        wal.append(ShardId(0), entry(index, &[1; 1000]));
        wal.flush(true).expect("it is written");
    }
    use storage::disk::Disk;
    disk.remove("wal-0000000000000002.log").expect("it exists");
    let (file, _) = damage(&disk);
    assert_eq!(file, "sim/wal-0000000000000002.log");
}

#[test]
fn after_a_failed_sync_nothing_is_written_any_more() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    wal.append(ShardId(0), entry(2, b"synced"));
    wal.flush(true).expect("it is written");
    disk.fail_sync_after(0);
    wal.append(ShardId(0), entry(3, b"lost"));
    let failure = wal.flush(true).expect_err("the sync fails");
    assert_eq!(failure.to_string(), format!("cannot sync sim/{FIRST}: Input/output error (os error 5)"));
    // A second sync would claim success without the data.
    wal.append(ShardId(0), entry(4, b"never written"));
    assert!(matches!(wal.flush(true), Err(StorageError::Failed { .. })));
    disk.crash(Survival::Everything, &mut SplitMix::new(1));
    let (_, recovered) = open(&disk, LARGE);
    assert_eq!(indexes(&recovered, 0), [2]);
}

#[test]
fn after_a_failed_write_nothing_is_written_any_more() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    disk.fail_write_after(0);
    wal.append(ShardId(0), entry(2, b"x"));
    assert!(wal.flush(true).is_err());
    assert!(wal.flush(true).is_err());
}

#[test]
fn segments_covered_by_checkpoints_are_recycled_and_their_old_records_never_read() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, SMALL);
    let mut last = 1;
    let mut files = 0;
    for round in 0..30 {
        for _ in 0..12 {
            last += 1;
            wal.append(ShardId(0), entry(last, &[round; 1200]));
            wal.flush(true).expect("it is written");
        }
        wal.release(&BTreeMap::from([(ShardId(0), Index(last))])).expect("segments are freed");
        use storage::disk::Disk;
        files = files.max(disk.list().expect("it can be listed").len());
        // What an earlier use left in a segment must not be taken for its tail.
        let copy = SimDisk::new();
        copy_files(&disk, &copy);
        let (_, recovered) = open(&copy, SMALL);
        let log = &recovered.shards[&ShardId(0)];
        assert_eq!(log.last().map(|(index, _)| index), Some(Index(last)), "round {round}");
        assert!(log.entries.iter().all(|entry| entry.data.iter().all(|byte| *byte >= round.saturating_sub(2))));
    }
    assert!(files <= 5, "{files} files were kept");
    assert!(wal.stats().size <= 3 * SMALL.segment_bytes);
}

#[test]
fn a_single_write_larger_than_a_segment_gets_one_of_its_own() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, SMALL);
    wal.append(ShardId(0), entry(2, &vec![5; 100_000]));
    wal.flush(true).expect("it is written");
    wal.append(ShardId(0), entry(3, b"small"));
    wal.flush(true).expect("it is written");
    let (_, recovered) = open(&disk, SMALL);
    assert_eq!(indexes(&recovered, 0), [2, 3]);
}

#[test]
fn hard_states_outlive_the_segments_they_were_written_to() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, SMALL);
    let state = HardState { term: Term(7), vote: 3, commit: Index(1) };
    wal.append_hard_state(ShardId(1), state);
    for index in 2..100 {
        wal.append(ShardId(0), entry(index, &[0; 1000]));
        wal.flush(true).expect("it is written");
    }
    wal.release(&BTreeMap::from([(ShardId(0), Index(99))])).expect("segments are freed");
    drop(wal);
    let (_, recovered) = open(&disk, SMALL);
    assert_eq!(recovered.shards[&ShardId(1)].hard_state, state);
}

#[test]
fn one_sync_carries_all_shards() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, LARGE);
    let before = disk.syncs();
    for shard in 0..64 {
        wal.append(ShardId(shard), entry(2, b"x"));
    }
    wal.flush(true).expect("it is written");
    assert_eq!(disk.syncs(), before + 1);
}

/// The bytes of format version 1. If this fails, data directories in the field cannot be read: write a new version instead.
#[test]
fn the_format_is_the_one_on_record() {
    let disk = SimDisk::new();
    let (mut wal, _) = open(&disk, Options { segment_bytes: 2048 });
    wal.append(ShardId(5), Entry { index: Index(2), term: Term(3), data: Bytes::from_static(b"entry") });
    wal.append_hard_state(ShardId(5), HardState { term: Term(3), vote: 0x1122_3344_5566_7788, commit: Index(1) });
    wal.restart(ShardId(6), Index(9), Term(2));
    wal.flush(true).expect("it is written");
    wal.settle().expect("the mark is written");
    let found = hex(&disk.contents(FIRST));
    let golden = "testdata/wal-v1.hex";
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(golden, &found).expect("it can be written");
    }
    assert_eq!(found, std::fs::read_to_string(golden).expect("the file exists"));

    let copy = SimDisk::new();
    copy_files(&disk, &copy);
    let (_, recovered) = open(&copy, Options { segment_bytes: 2048 });
    assert_eq!(recovered.shards[&ShardId(5)].hard_state.vote, 0x1122_3344_5566_7788);
}

/// 16 bytes a line with their offset; lines of zeros are left out.
fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0));
    lines
        .map(|(number, line)| {
            let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{:08x}  {}\n", number * 16, digits.join(" "))
        })
        .collect()
}

fn copy_files(from: &SimDisk, to: &SimDisk) {
    use storage::disk::{Disk, DiskFile};
    for name in from.list().expect("it can be listed") {
        let file = to.create(&name).expect("it is new");
        file.write_at(&from.contents(&name), 0).expect("the disk does not fail");
        file.sync().expect("the disk does not fail");
    }
    to.sync_names().expect("the disk does not fail");
}
