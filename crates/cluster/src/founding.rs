//! What a data directory says about its node and its cluster, and what becomes of a new one.

use base::Incarnation;
use base::ScheduleTime;
use base::codec::Reader;
use replica::{FIRST, Member, Members};
use storage::StorageError;
use storage::checkpoint::Meta;
use storage::identity::{DataDir, Identity};

use crate::forming::{ClusterId, Proposal, cluster_id};
use crate::node::{NodeConfig, StartError};
use crate::open::random_incarnation;

/// The identity of a data directory: the one it has, which must fit the configuration, or a new one. Without a directory it is new.
pub(crate) fn identify(
    directory: Option<&DataDir>,
    config: &NodeConfig,
    now: ScheduleTime,
) -> Result<Identity, StartError> {
    let recorded = match directory {
        Some(directory) => directory.identity().map_err(StartError::Storage)?,
        None => None,
    };
    let (Some(identity), Some(directory)) = (recorded, directory) else {
        let identity = Identity {
            node: config.name.clone(),
            incarnation: random_incarnation(),
            cluster: 0,
            cluster_incarnation: Incarnation(0),
            shards: config.shards,
            provider: if directory.is_some() { "sqlite" } else { "memory" }.into(),
            created_at: now,
        };
        if let Some(directory) = directory {
            directory.found(&identity).map_err(StartError::Storage)?;
        }
        return Ok(identity);
    };
    directory.settled().map_err(StartError::Storage)?;
    let path = directory.path().display().to_string();
    let differs = |what: &'static str, recorded: &dyn ToString, given: &dyn ToString| {
        let (recorded, given) = (recorded.to_string(), given.to_string());
        StartError::Differs { directory: path.clone(), what, recorded, given }
    };
    if identity.shards != config.shards {
        return Err(differs("shards", &identity.shards, &config.shards));
    }
    if config.name_is_given && identity.node != config.name {
        return Err(differs("cluster.nodeId", &identity.node, &config.name));
    }
    Ok(identity)
}

/// The cluster of a node that founds one alone.
pub(crate) fn found_alone(label: &str, me: Member, shards: u16) -> Proposal {
    Proposal {
        cluster: cluster_id(label, std::iter::once(me.id)),
        incarnation: random_incarnation(),
        shards,
        first: me.name.clone(),
        founders: vec![me],
    }
}

/// The founding that a data directory has accepted.
pub(crate) fn accepted(directory: Option<&DataDir>) -> Result<Option<Proposal>, StorageError> {
    let Some(directory) = directory else { return Ok(None) };
    let Some(bytes) = directory.founding()? else { return Ok(None) };
    let mut reader = Reader::new(&bytes);
    let read = Proposal::decode(&mut reader).and_then(|proposal| reader.finish().map(|()| proposal));
    let damaged = |_| StorageError::Damaged {
        file: directory.path().join("founding").display().to_string(),
        offset: None,
        what: "it does not read back".into(),
    };
    read.map(Some).map_err(damaged)
}

/// Keeps a founding that this node accepts.
pub(crate) fn accept(directory: Option<&DataDir>, proposal: &Proposal) -> Result<(), StorageError> {
    let mut bytes = Vec::new();
    proposal.encode(&mut bytes);
    directory.map_or(Ok(()), |directory| directory.accept_founding(&bytes))
}

/// Makes the node a member of its cluster, durably.
pub(crate) fn join(
    directory: Option<&DataDir>,
    identity: &Identity,
    cluster: ClusterId,
    incarnation: Incarnation,
) -> Result<Identity, StorageError> {
    let joined = Identity { cluster: cluster.0, cluster_incarnation: incarnation, ..identity.clone() };
    directory.map_or(Ok(()), |directory| directory.found(&joined))?;
    Ok(joined)
}

/// What a shard's first checkpoint is of: the founders stand where an entry would, so whoever joins later gets them with a snapshot. A
/// node that joins begins with nothing.
pub(crate) fn first_checkpoint(founding: Option<&Proposal>, identity: &Identity) -> Meta {
    match founding.filter(|founding| founding.cluster.0 == identity.cluster) {
        Some(founding) => {
            Meta { configuration: Members::of_voters(founding.founders.iter().cloned()).encode(), ..FIRST }
        }
        None => Meta { configuration: Members::default().encode(), ..Meta::default() },
    }
}
