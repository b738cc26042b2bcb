//! Entries applied to a state machine without a group: for what a lone survivor of a cluster still has.

use base::log::Entry;
use base::machine::{Effects, StateMachine};
use consensus::codec::{ELECTION, MEMBERS, OPERATIONS, RESTORE, TOKEN};
use consensus::decode_changes;

use crate::batch::{operations, read_entry};
use crate::members::Members;
use crate::restores::RestoreStep;
use crate::shard::Fault;

/// Applies entries that follow what the state machine has applied, whether or not they were committed. Changes of members have no effect:
/// who is a member of what comes next is for the caller to say. `members` are those of the state.
///
/// # Errors
/// An entry cannot be read, or is of a kind that this build does not know.
pub fn replay<S: StateMachine>(
    shard: base::ShardId,
    machine: &mut S,
    members: &Members,
    entries: &[Entry],
) -> Result<(), Fault> {
    let mut effects = Effects { woken: Vec::new(), signals: Vec::new() };
    for entry in entries {
        let fault = Fault { shard, index: entry.index };
        match entry.data.first() {
            None => {}
            Some(&OPERATIONS) => {
                let (header, rest) = read_entry(members.restores.seen(entry.index), &entry.data).map_err(|_| fault)?;
                // Stamps of another term's leader mean nothing in this one.
                if header.term == entry.term {
                    machine.begin_entry(&header, &mut effects);
                    for operation in operations(rest) {
                        machine.apply(operation.map_err(|_| fault)?, &mut effects).map_err(|_| fault)?;
                    }
                }
            }
            Some(&MEMBERS) => drop(decode_changes(&entry.data).map_err(|_| fault)?),
            Some(&ELECTION | &TOKEN) => {}
            // What a restore that was committed has brought is not in the log.
            Some(&RESTORE) => match RestoreStep::decode(&entry.data[1..]) {
                Ok(RestoreStep::Begin(_) | RestoreStep::Abort(_)) => {}
                Ok(RestoreStep::Commit(_)) | Err(_) => return Err(fault),
            },
            Some(_) => return Err(fault),
        }
        // Nobody waits and nobody observes.
        effects.woken.clear();
        effects.signals.clear();
    }
    Ok(())
}
