//! What operators ask of a running cluster: that a member goes, that another node leads. An action is done by the node that leads the group
//! that it is about, and every other node hands it on, so that it may be asked of any. It ends when it is done, or has failed and left
//! things as they were; what would cost a group its majority is refused with the numbers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use base::{Incarnation, Index, Millis, Position, ShardId, Term};
use replica::leadership::successor;
use replica::{Member, MemberChange, Members, Reply, Unavailable};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::guard::{Numbers, Step, after};
use crate::inbox::Control;
use crate::lane::ReplyTo;
use crate::node::{Handle, NodeStatus, Patience};
use crate::peer::Shared;
use crate::peer::admission::RECORDS;
use crate::peer::requests::What;

/// Longest time for the answer to an action that another node does: longer than any of them takes.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Time for the members to be changed, another change before this one included.
const CHANGE_MAX: Duration = Duration::from_secs(10);

/// Between attempts, where another change is under way.
const CHANGE_AGAIN: Duration = Duration::from_millis(50);

/// Time for a node that is added to be admitted.
const ADMISSION_MAX: Duration = Duration::from_secs(15);

/// Time for a member that was removed to hear of it.
const NEWS_MAX: Duration = Duration::from_secs(5);

/// Time for a group to be handed over, if nothing else is said.
pub const TRANSFER_MAX: Millis = Millis(5_000);

/// A node that stepped down stays out for so long, if nothing else is said.
pub const HOLD: Millis = Millis(60_000);

/// Actions that one node does or waits with at one time; more are refused.
pub(crate) const ACTIONS_MAX: usize = 16;

/// A node is no member any more, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// Somebody removed it.
    Removed,
    /// It has left.
    Left,
}

impl Retired {
    /// What its data directory is marked with.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Retired::Removed => "removed",
            Retired::Left => "left",
        }
    }
}

/// What the leader of a group is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Take a member, by name or id, out of every group.
    Remove {
        member: String,
        force: bool,
    },
    /// Take a member's vote, or let it vote again.
    Demote {
        member: String,
        force: bool,
    },
    Promote {
        member: String,
    },
    /// Hand the group over, to this voter or to the best one.
    Transfer {
        group: ShardId,
        to: Option<String>,
        longest: Millis,
    },
    /// Give every group away, and neither ask for one nor keep one for this long.
    StepDown {
        hold: Millis,
    },
    /// Leave the groups where they are: an operator has just put one there.
    Settle,
}

impl Action {
    /// Whose leader is asked.
    fn group(&self) -> ShardId {
        match self {
            Action::Transfer { group, .. } => *group,
            Action::Remove { .. }
            | Action::Demote { .. }
            | Action::Promote { .. }
            | Action::StepDown { .. }
            | Action::Settle => RECORDS,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Action::Remove { member, force } => {
                bytes.put_u8(0);
                bytes.put_bytes(member.as_bytes());
                bytes.put_u8(u8::from(*force));
            }
            Action::Transfer { group, to, longest } => {
                bytes.put_u8(1);
                bytes.put_u16(group.0);
                bytes.put_bytes(to.as_deref().unwrap_or_default().as_bytes());
                bytes.put_varint(longest.0);
            }
            Action::StepDown { hold } => {
                bytes.put_u8(2);
                bytes.put_varint(hold.0);
            }
            Action::Settle => bytes.put_u8(3),
            Action::Demote { member, force } => {
                bytes.put_u8(4);
                bytes.put_bytes(member.as_bytes());
                bytes.put_u8(u8::from(*force));
            }
            Action::Promote { member } => {
                bytes.put_u8(5);
                bytes.put_bytes(member.as_bytes());
            }
        }
        bytes
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Action, Malformed> {
        Ok(match reader.u8()? {
            0 => Action::Remove { member: reader.text()?.into(), force: reader.u8()? != 0 },
            1 => Action::Transfer {
                group: ShardId(reader.u16()?),
                to: Some(reader.text()?).filter(|to| !to.is_empty()).map(str::to_owned),
                longest: Millis(reader.varint()?),
            },
            2 => Action::StepDown { hold: Millis(reader.varint()?) },
            3 => Action::Settle,
            4 => Action::Demote { member: reader.text()?.into(), force: reader.u8()? != 0 },
            5 => Action::Promote { member: reader.text()?.into() },
            _ => return Err(Malformed),
        })
    }
}

/// What an action has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The term of the group that it was about.
    pub term: Term,
    /// The entry that made the change; nothing: there was none to make.
    pub position: Option<Position>,
    /// The name of the leader of the group that it was about.
    pub leader: String,
    /// How long it took.
    pub took: Millis,
    /// How the cluster stands now, in words; empty: there is nothing to say.
    pub note: String,
}

/// Why an action was not done. Nothing has changed, but for [`Refused::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This node is alone.
    SingleMode,
    /// No node leads just now, or the one that does cannot be reached.
    NoLeader,
    /// Too many actions are under way.
    Busy,
    /// There is no member of this name or id.
    UnknownMember(String),
    /// There is no such group.
    UnknownGroup(u16),
    /// This member cannot lead.
    NotVoter(String),
    /// A group would lose its majority.
    Guard(Numbers),
    /// The group is led as before; why.
    TransferFailed(String),
    /// The node at the address does not answer, or was not admitted; why.
    NotAdmitted(String),
    /// Whether it was done is not known.
    Unknown,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::SingleMode => {
                f.write_str("this node has no peer address: start it with --raft-addr and --raft-advertise")
            }
            Refused::NoLeader => f.write_str("no node leads just now"),
            Refused::Busy => f.write_str("other actions are under way; try again"),
            Refused::UnknownMember(text) => write!(f, "the cluster has no member {text}"),
            Refused::UnknownGroup(group) => write!(f, "there is no group {group}"),
            Refused::NotVoter(name) => write!(f, "{name} does not vote, so it cannot lead"),
            Refused::Guard(numbers) => write!(f, "refused: {numbers}"),
            Refused::TransferFailed(why) => write!(f, "not handed over: {why}"),
            Refused::NotAdmitted(why) => write!(f, "not added: {why}"),
            Refused::Unknown => f.write_str("the answer got lost: look at the members before trying again"),
        }
    }
}

impl std::error::Error for Refused {}

/// An outcome as bytes, for the node that was asked.
pub(crate) fn encode_outcome(outcome: &Result<Done, Refused>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut text = |kind: u8, text: &str| {
        bytes.put_u8(kind);
        bytes.put_bytes(text.as_bytes());
    };
    match outcome {
        Ok(done) => {
            text(0, &done.leader);
            bytes.put_bytes(done.note.as_bytes());
            bytes.put_varint(done.term.0);
            bytes.put_varint(done.took.0);
            let position = done.position.unwrap_or(Position { shard: RECORDS, term: Term(0), index: Index(0) });
            bytes.put_u16(position.shard.0);
            bytes.put_varint(position.term.0);
            bytes.put_varint(position.index.0);
        }
        Err(Refused::SingleMode) => text(1, ""),
        Err(Refused::NoLeader) => text(2, ""),
        Err(Refused::Busy) => text(3, ""),
        Err(Refused::UnknownMember(name)) => text(4, name),
        Err(Refused::UnknownGroup(group)) => {
            text(5, "");
            bytes.put_u16(*group);
        }
        Err(Refused::NotVoter(name)) => text(6, name),
        Err(Refused::Guard(Numbers { group, voters, alive, needed })) => {
            text(7, "");
            bytes.put_u16(*group);
            [voters, alive, needed].iter().for_each(|number| bytes.put_varint(**number as u64));
        }
        Err(Refused::TransferFailed(why)) => text(8, why),
        Err(Refused::NotAdmitted(why)) => text(9, why),
        Err(Refused::Unknown) => text(10, ""),
    }
    bytes
}

/// Reads what [`encode_outcome`] wrote.
pub(crate) fn decode_outcome(bytes: &[u8]) -> Result<Result<Done, Refused>, Malformed> {
    let mut reader = Reader::new(bytes);
    let (kind, text) = (reader.u8()?, reader.text()?.to_owned());
    let refused = match kind {
        0 => {
            let note = reader.text()?.to_owned();
            let (term, took) = (Term(reader.varint()?), Millis(reader.varint()?));
            let (shard, at, index) = (ShardId(reader.u16()?), Term(reader.varint()?), Index(reader.varint()?));
            let position = (index > Index(0)).then_some(Position { shard, term: at, index });
            return Ok(Ok(Done { term, position, leader: text, took, note }));
        }
        1 => Refused::SingleMode,
        2 => Refused::NoLeader,
        3 => Refused::Busy,
        4 => Refused::UnknownMember(text),
        5 => Refused::UnknownGroup(reader.u16()?),
        6 => Refused::NotVoter(text),
        7 => Refused::Guard(Numbers {
            group: reader.u16()?,
            voters: reader.narrow()?,
            alive: reader.narrow()?,
            needed: reader.narrow()?,
        }),
        8 => Refused::TransferFailed(text),
        9 => Refused::NotAdmitted(text),
        10 => Refused::Unknown,
        _ => return Err(Malformed),
    };
    reader.finish()?;
    Ok(Err(refused))
}

impl<S: StateMachine> Handle<S> {
    /// Takes a member, by its name or the 16 digits of its id, out of every group for good. What it leads is handed over first; it is told,
    /// and its [`Handle::retired`] says so. Without `force` nothing is done that would cost a group its majority; with it, it is done and
    /// logged as such. The last voter stays whatever is asked.
    ///
    /// # Errors
    /// It was not done.
    pub async fn remove(&self, member: &str, force: bool) -> Result<Done, Refused> {
        self.act(Action::Remove { member: member.into(), force }).await
    }

    /// Takes a member's vote, by its name or id: it gets the log and does not count, until it is promoted by hand. What would cost a group
    /// its majority is done with `force` only.
    ///
    /// # Errors
    /// It was not done.
    pub async fn demote(&self, member: &str, force: bool) -> Result<Done, Refused> {
        self.act(Action::Demote { member: member.into(), force }).await
    }

    /// Lets a member vote, by its name or id, as soon as it has caught up; waits for that as long as for an admission.
    ///
    /// # Errors
    /// It was not done.
    pub async fn promote(&self, member: &str) -> Result<Done, Refused> {
        self.act(Action::Promote { member: member.into() }).await
    }

    /// Removes this node. When it is done, stop the node.
    ///
    /// # Errors
    /// It was not done: the node is a member as before.
    pub async fn leave(&self, force: bool) -> Result<Done, Refused> {
        self.common.leaving.store(true, Ordering::Relaxed);
        let me = Incarnation(self.id()).to_string();
        let outcome = match self.act(Action::Remove { member: me, force }).await {
            // The connection ends with the membership, perhaps before the answer has come; then the news comes.
            Err(Refused::Unknown) => match timeout(NEWS_MAX, self.retired()).await {
                Ok(_) => Ok(Done { leader: self.name_of(self.leader(RECORDS)), ..Done::default() }),
                Err(_) => Err(Refused::Unknown),
            },
            outcome => outcome,
        };
        match outcome {
            Ok(_) => self.common.retire(Retired::Left),
            Err(_) => self.common.leaving.store(false, Ordering::Relaxed),
        }
        outcome
    }

    /// Waits until this node is no member any more: it is of no use from then on, and is to be stopped.
    pub async fn retired(&self) -> Retired {
        let mut retired = self.common.retired.subscribe();
        // The sender lives in `self`.
        let retired = retired.wait_for(Option::is_some).await.expect("the sender is there");
        retired.expect("it was waited for")
    }

    /// Introduces the node at a peer address to this cluster, and waits until it is a member; it votes when it has caught up. It must wait
    /// for a cluster, and be one that this cluster admits.
    ///
    /// # Errors
    /// It was not admitted.
    pub async fn add(&self, address: &str) -> Result<Member, Refused> {
        let peers = self.common.peers.get().ok_or(Refused::SingleMode)?;
        if self.leader(RECORDS) == 0 {
            return Err(Refused::NoLeader);
        }
        let known = |name: Option<&str>| {
            let members = self.members();
            let found = members.iter().find(|member| member.peer == address || Some(member.name.as_str()) == name);
            found.cloned()
        };
        if let Some(member) = known(None) {
            return Ok(member);
        }
        let answer = peers.introduce(&[address.to_owned()]).await.into_iter().next();
        let name = answer.unwrap_or_else(|| Err("this node is starting".into())).map_err(Refused::NotAdmitted)?;
        let mut status = self.common.status.subscribe();
        let admitted = async {
            loop {
                if let Some(member) = known(Some(&name)) {
                    return member;
                }
                // The sender lives in `self`.
                let _ = status.changed().await;
            }
        };
        let late = |_| Refused::NotAdmitted(format!("{name} has not asked to be admitted; its log may say why"));
        timeout(ADMISSION_MAX, admitted).await.map_err(late)
    }

    /// Hands one group, or every group, to a voter, by its name or id, or to the best one; waits until that one has committed an entry, at
    /// most `longest` for each. What was asked for meanwhile is held, not refused.
    ///
    /// # Errors
    /// A group is led as before.
    pub async fn hand_over(&self, group: Option<ShardId>, to: Option<&str>, longest: Millis) -> Result<Done, Refused> {
        let groups: Vec<ShardId> = match group {
            Some(group) if !self.common.inbox.has(group) => return Err(Refused::UnknownGroup(group.0)),
            Some(group) => vec![group],
            None => (0..self.identity().shards).map(ShardId).collect(),
        };
        let mut last = Done::default();
        for group in groups.into_iter().rev() {
            let done = self.act(Action::Transfer { group, to: to.map(str::to_owned), longest }).await?;
            last = Done { took: last.took + done.took, ..done };
        }
        Ok(last)
    }

    /// The leader of group 0 gives every group away, and leads none for `hold`.
    ///
    /// # Errors
    /// Nobody can take over.
    pub async fn step_down(&self, hold: Millis) -> Result<Done, Refused> {
        self.act(Action::StepDown { hold }).await
    }

    /// How the cluster would stand if this member stopped, as far as this node knows.
    ///
    /// # Errors
    /// There is no such member, or this node has no groups yet.
    pub fn if_stopped(&self, member: &str) -> Result<Numbers, Refused> {
        let peers = self.common.peers.get().ok_or(Refused::SingleMode)?;
        let member = find(&peers.members(), member).ok_or_else(|| Refused::UnknownMember(member.into()))?;
        let groups = voters(&self.status());
        if groups.is_empty() {
            return Err(Refused::NoLeader);
        }
        Ok(after(&groups, Step::Stop(member.id), |id| is_alive(peers, id)))
    }

    fn name_of(&self, id: u64) -> String {
        self.member(id).map_or_else(|| Incarnation(id).to_string(), |member| member.name)
    }

    /// Has an action done by whoever leads its group.
    async fn act(&self, action: Action) -> Result<Done, Refused> {
        let peers = self.common.peers.get().ok_or(Refused::SingleMode)?;
        let mut patience = Patience::new(self);
        loop {
            let leader = self.leader(action.group());
            let outcome = match peers.links.get(leader) {
                _ if leader == self.id() => perform(peers, &action).await,
                Some(link) => link.act(&action).await,
                None => Err(Refused::NoLeader),
            };
            if outcome != Err(Refused::NoLeader) || !patience.wait().await {
                return outcome;
            }
        }
    }
}

/// The members whose votes count, by group.
fn voters(status: &NodeStatus) -> Vec<(ShardId, Vec<u64>)> {
    status.voters.iter().map(|(group, voters)| (*group, voters.clone())).collect()
}

fn find(members: &Members, text: &str) -> Option<Member> {
    let named = |member: &&Member| member.name == text || Incarnation(member.id).to_string() == text;
    // A name is taken by the voter that has it until a new data directory has taken its place.
    let mut found: Vec<&Member> = members.iter().filter(named).collect();
    found.sort_by_key(|member| !members.configuration.voters.contains(&member.id));
    found.first().map(|member| (*member).clone())
}

fn is_alive<S: StateMachine>(peers: &Shared<S>, id: u64) -> bool {
    let heard = || peers.links.get(id)?.contact(peers.clock.now().mono).heard;
    id == peers.common.me || heard().is_some_and(|heard| heard <= peers.common.contact_max)
}

/// Does an action here, if this node leads its group.
pub(crate) async fn perform<S: StateMachine>(peers: &Arc<Shared<S>>, action: &Action) -> Result<Done, Refused> {
    let _place = peers.actions.try_acquire().map_err(|_| Refused::Busy)?;
    if *action == Action::Settle {
        peers.common.inbox.control(Control::Settle);
        return Ok(Done::default());
    }
    if peers.common.routes.leader(action.group()) != peers.common.me {
        return Err(Refused::NoLeader);
    }
    let begun = Instant::now();
    let outcome = match action {
        Action::Remove { member, force } => remove(peers, member, *force).await,
        Action::Demote { member, force } => demote(peers, member, *force).await,
        Action::Promote { member } => promote(peers, member).await,
        Action::Transfer { group, to, longest } => transfer(peers, *group, to.as_deref(), *longest).await,
        Action::StepDown { hold } => step_down(peers, *hold).await,
        Action::Settle => Ok(Done::default()),
    };
    let result = match &outcome {
        // It is asked of the next leader.
        Err(Refused::NoLeader) => return outcome,
        Err(refused) => refused.to_string(),
        Ok(done) => done.note.clone(),
    };
    tracing::info!(target: "raft", event = "admin.action", action = ?action, ok = outcome.is_ok(), "{result}");
    outcome.map(|done| Done { took: Millis(begun.elapsed().as_millis() as u64), ..done })
}

async fn remove<S: StateMachine>(peers: &Arc<Shared<S>>, text: &str, force: bool) -> Result<Done, Refused> {
    let common = &peers.common;
    let members = peers.members();
    let Some(member) = find(&members, text) else {
        let removed = u64::from_str_radix(text, 16).is_ok_and(|id| members.was_removed(id));
        let already = || done(peers, RECORDS, format!("{text} is no member any more"));
        return if removed { Ok(already()) } else { Err(Refused::UnknownMember(text.into())) };
    };
    let (name, id) = (&member.name, member.id);
    let groups = voters(&common.status.borrow());
    let numbers = after(&groups, Step::Unvote(id), |id| is_alive(peers, id));
    if numbers.voters == 0 || !(numbers.decides() || force) {
        return Err(Refused::Guard(numbers));
    }
    if !numbers.decides() {
        tracing::warn!(target: "raft", event = "admin.forced", member = %name, "{name} is removed by force: {numbers}");
    }
    if id == common.me {
        // The next leader does it.
        transfer(peers, RECORDS, None, TRANSFER_MAX).await?;
        return Err(Refused::NoLeader);
    }
    for (group, _) in groups.iter().filter(|(group, _)| common.routes.leader(*group) == id) {
        if let Some(link) = peers.links.get(id) {
            // If it cannot, the others elect somebody.
            let _ = link.act(&Action::Transfer { group: *group, to: None, longest: TRANSFER_MAX }).await;
        }
    }
    let is_out = |status: &NodeStatus| voters(status).iter().all(|(_, voters)| !voters.contains(&id));
    // Its vote goes first, in every group: nobody listens to who is no member any more, and a group of two needs its word to go on.
    if !is_out(&common.status.borrow()) {
        change(peers, MemberChange::AddLearner(id)).await?;
        if !wait_until(peers, CHANGE_MAX, is_out).await && !force {
            return Err(Refused::Busy);
        }
    }
    let position = change(peers, MemberChange::Remove(id)).await?;
    tracing::info!(target: "raft", event = "raft.member.removed", member = %name, "{name} is no member any more");
    let followed = wait_until(peers, CHANGE_MAX, is_out).await;
    let rest = if followed { String::new() } else { "; not every group has followed yet".into() };
    let warning = if numbers.tolerance() == 0 { "; nothing may fail from now on" } else { "" };
    let numbers = after(&voters(&common.status.borrow()), Step::Unvote(id), |id| is_alive(peers, id));
    let note = format!("{name} was removed: {} voters, {} are needed{warning}{rest}", numbers.voters, numbers.needed);
    Ok(Done { position: Some(position), ..done(peers, RECORDS, note) })
}

async fn demote<S: StateMachine>(peers: &Arc<Shared<S>>, text: &str, force: bool) -> Result<Done, Refused> {
    let members = peers.members();
    let member = find(&members, text).ok_or_else(|| Refused::UnknownMember(text.into()))?;
    let (name, id) = (&member.name, member.id);
    if !members.configuration.voters.contains(&id) {
        return Ok(done(peers, RECORDS, format!("{name} does not vote")));
    }
    let numbers = after(&voters(&peers.common.status.borrow()), Step::Unvote(id), |id| is_alive(peers, id));
    if numbers.voters == 0 || !(numbers.decides() || force) {
        return Err(Refused::Guard(numbers));
    }
    if id == peers.common.me {
        // The next leader does it.
        transfer(peers, RECORDS, None, TRANSFER_MAX).await?;
        return Err(Refused::NoLeader);
    }
    let position = change(peers, MemberChange::AddLearner(id)).await?;
    let is_out = |status: &NodeStatus| voters(status).iter().all(|(_, voters)| !voters.contains(&id));
    let followed = wait_until(peers, CHANGE_MAX, is_out).await;
    let rest = if followed { "" } else { "; not every group has followed yet" };
    let note = format!("{name} votes no more, until it is promoted: {numbers}{rest}");
    Ok(Done { position: Some(position), ..done(peers, RECORDS, note) })
}

async fn promote<S: StateMachine>(peers: &Arc<Shared<S>>, text: &str) -> Result<Done, Refused> {
    let members = peers.members();
    let member = find(&members, text).ok_or_else(|| Refused::UnknownMember(text.into()))?;
    let (name, id) = (&member.name, member.id);
    if members.configuration.voters.contains(&id) {
        return Ok(done(peers, RECORDS, format!("{name} votes already")));
    }
    let numbers = after(&voters(&peers.common.status.borrow()), Step::Vote(id), |id| is_alive(peers, id));
    if !numbers.decides() {
        return Err(Refused::Guard(numbers));
    }
    let mut position = None;
    if members.is_demoted(id) {
        // It is a learner like others again, and those vote by themselves when they have caught up.
        position = Some(change(peers, MemberChange::AddLearner(id)).await?);
    }
    let is_in = |status: &NodeStatus| voters(status).iter().all(|(_, voters)| voters.contains(&id));
    let votes = wait_until(peers, ADMISSION_MAX, is_in).await;
    let how = if votes { "votes" } else { "will vote when it has caught up" };
    Ok(Done { position, ..done(peers, RECORDS, format!("{name} {how}: {numbers}")) })
}

/// Changes the members in group 0, whose leader this is; the others follow.
async fn change<S: StateMachine>(peers: &Arc<Shared<S>>, change: MemberChange) -> Result<Position, Refused> {
    let begun = Instant::now();
    loop {
        let (sender, reply) = oneshot::channel();
        let client = ReplyTo::Local { sender, lane: None };
        peers.common.inbox.control(Control::Change(RECORDS, vec![change], Vec::new(), client));
        let left = CHANGE_MAX.saturating_sub(begun.elapsed());
        match timeout(left, reply).await {
            Ok(Ok(Reply::Applied { position, .. })) => return Ok(position),
            Ok(Ok(Reply::Unavailable(Unavailable::Overloaded))) if !left.is_zero() => {
                tokio::time::sleep(CHANGE_AGAIN).await;
            }
            Ok(Ok(Reply::Unavailable(Unavailable::Overloaded))) => return Err(Refused::Busy),
            Ok(Ok(Reply::Unavailable(why))) if why.is_definite() => return Err(Refused::NoLeader),
            _ => return Err(Refused::Unknown),
        }
    }
}

/// Waits until the node says something of itself that is so. False: it has not in time.
async fn wait_until<S: StateMachine>(
    peers: &Shared<S>,
    longest: Duration,
    is_so: impl Fn(&NodeStatus) -> bool,
) -> bool {
    let mut status = peers.common.status.subscribe();
    // The sender lives in `peers`.
    timeout(longest, status.wait_for(|status| is_so(status))).await.is_ok()
}

fn done<S: StateMachine>(peers: &Shared<S>, group: ShardId, note: String) -> Done {
    let status = peers.common.status.borrow();
    let term = status.shards.iter().find(|shard| shard.shard == group).map_or(Term(0), |shard| shard.consensus.term);
    let leader = peers.common.routes.leader(group);
    let leader = peers.member(leader).map_or_else(|| Incarnation(leader).to_string(), |member| member.name);
    Done { term, leader, note, ..Done::default() }
}

async fn transfer<S: StateMachine>(
    peers: &Arc<Shared<S>>,
    group: ShardId,
    to: Option<&str>,
    longest: Millis,
) -> Result<Done, Refused> {
    let common = &peers.common;
    let me = common.me;
    let (groups, progress, term) = {
        let status = common.status.borrow();
        let term = status.shards.iter().find(|shard| shard.shard == group).map(|shard| shard.consensus.term);
        (voters(&status), status.progress.get(&group).cloned().unwrap_or_default(), term.unwrap_or_default())
    };
    let target = match to {
        None => {
            let nobody = || Refused::TransferFailed("no other voter can be reached".into());
            successor(me, &progress, u64::MAX).ok_or_else(nobody)?
        }
        Some(text) => {
            let member = find(&peers.members(), text).ok_or_else(|| Refused::UnknownMember(text.into()))?;
            let votes = groups.iter().any(|(of, voters)| *of == group && voters.contains(&member.id));
            if !votes {
                return Err(Refused::NotVoter(member.name));
            }
            if !is_alive(peers, member.id) {
                return Err(Refused::TransferFailed(format!("{} cannot be reached", member.name)));
            }
            member.id
        }
    };
    if target == me {
        return Ok(done(peers, group, String::new()));
    }
    let begun = Instant::now();
    // Another leader's term has begun, and that leader has committed an entry in it.
    let is_over = |status: &NodeStatus| {
        let shard = status.shards.iter().find(|shard| shard.shard == group);
        shard.is_some_and(|shard| {
            let leader = shard.consensus.leader;
            leader != 0 && leader != me && shard.consensus.term > term && shard.applied_term == shard.consensus.term
        })
    };
    loop {
        let left = longest.to_std().saturating_sub(begun.elapsed());
        common.inbox.control(Control::Transfer(group, target));
        // Raft gives up after an election timeout; then it is tried again.
        if wait_until(peers, left.min(common.contact_max.to_std()), is_over).await {
            break;
        }
        if left.is_zero() {
            let name = done(peers, group, String::new()).leader;
            let text = format!("the target did not take over within {} ms; {name} leads as before", longest.0);
            return Err(Refused::TransferFailed(text));
        }
    }
    let leader = common.routes.leader(group);
    if let Some(link) = peers.links.get(leader) {
        // Otherwise it might soon be spread elsewhere; no more.
        let _ = link.act(&Action::Settle).await;
    }
    if leader != target && to.is_some() {
        // Somebody else was quicker: it is that one's to hand over.
        return Err(Refused::NoLeader);
    }
    Ok(done(peers, group, String::new()))
}

async fn step_down<S: StateMachine>(peers: &Arc<Shared<S>>, hold: Millis) -> Result<Done, Refused> {
    let common = &peers.common;
    let me = common.me;
    let progress = common.status.borrow().progress.clone();
    if progress.values().any(|progress| successor(me, progress, u64::MAX).is_none()) {
        return Err(Refused::TransferFailed("no other voter can be reached".into()));
    }
    common.inbox.control(Control::StepDown(hold));
    let is_over = |status: &NodeStatus| {
        status.shards.iter().all(|shard| {
            let leader = shard.consensus.leader;
            leader != 0 && leader != me && shard.applied_term == shard.consensus.term
        })
    };
    if !wait_until(peers, TRANSFER_MAX.to_std(), is_over).await {
        common.inbox.control(Control::StepDown(Millis(0)));
        return Err(Refused::TransferFailed("the others did not take over in time".into()));
    }
    Ok(done(peers, RECORDS, String::new()))
}

impl<S: StateMachine> crate::peer::Link<S> {
    /// Has an action done by the member at the other end.
    async fn act(&self, action: &Action) -> Result<Done, Refused> {
        let answer = self.request(What::Act, action.encode()).ok_or(Refused::NoLeader)?;
        let answered = timeout(ANSWER_MAX, answer).await;
        let bytes = answered.map_err(|_| Refused::Unknown)?.map_err(|_| Refused::Unknown)?;
        decode_outcome(&bytes).unwrap_or(Err(Refused::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_and_outcomes_read_back() {
        let actions = [
            Action::Remove { member: "a".into(), force: true },
            Action::Transfer { group: ShardId(3), to: Some("b".into()), longest: Millis(5) },
            Action::Transfer { group: ShardId(3), to: None, longest: Millis(5) },
            Action::StepDown { hold: Millis(9) },
            Action::Settle,
            Action::Demote { member: "a".into(), force: true },
            Action::Promote { member: "a".into() },
        ];
        for action in actions {
            assert_eq!(Action::decode(&mut Reader::new(&action.encode())), Ok(action));
        }
        assert!(Action::decode(&mut Reader::new(&[9])).is_err());
        let position = Some(Position { shard: ShardId(1), term: Term(2), index: Index(3) });
        let note = "words".to_owned();
        let outcomes = [
            Ok(Done { term: Term(4), position, leader: "a".into(), took: Millis(5), note }),
            Ok(Done::default()),
            Err(Refused::SingleMode),
            Err(Refused::NoLeader),
            Err(Refused::Busy),
            Err(Refused::UnknownMember("a".into())),
            Err(Refused::UnknownGroup(7)),
            Err(Refused::NotVoter("a".into())),
            Err(Refused::Guard(Numbers { group: 1, voters: 2, alive: 3, needed: 4 })),
            Err(Refused::TransferFailed("why".into())),
            Err(Refused::NotAdmitted("why".into())),
            Err(Refused::Unknown),
        ];
        for outcome in outcomes {
            assert_eq!(decode_outcome(&encode_outcome(&outcome)), Ok(outcome));
        }
    }

    /// While a new data directory catches up, the name is still the voter's.
    #[test]
    fn a_name_means_the_voter_that_has_it() {
        let named = |id: u64, name: &str| Member { id, name: name.into(), ..Member::default() };
        let mut members = Members::of_voters([named(1, "a"), named(2, "b"), named(3, "b")]);
        members.configuration.voters = vec![1, 3];
        assert_eq!(find(&members, "b").map(|member| member.id), Some(3));
        assert_eq!(find(&members, "0000000000000002").map(|member| member.id), Some(2));
        assert_eq!(find(&members, "c"), None);
    }
}
