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
use replica::{
    Joining, Member, MemberChange, Members, Progress, Reply, RestoreId, RestoreStep, TokenStep, Unavailable,
};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::guard::{Numbers, Step, after};
use crate::inbox::Control;
use crate::lane::ReplyTo;
use crate::node::{Handle, NodeStatus, Patience};
use crate::peer::Shared;
use crate::peer::admission::RECORDS;
use crate::peer::requests::What;
use crate::{restoring, tokens};

/// Longest time for the answer to an action that another node does: longer than any of them takes.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Time for the members to be changed, another change before this one included.
pub(crate) const CHANGE_MAX: Duration = Duration::from_secs(10);

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

/// What somebody may do to a cluster. Each right holds those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Look at it.
    Look,
    /// Change members and leaders.
    Operate,
    /// Everything.
    Administer,
}

/// Who asks for an action. It travels with the action to the node that does it, which looks at it once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Its name, for the log.
    pub name: String,
    /// What it may do.
    pub right: Right,
}

impl Actor {
    /// This node itself, or the program that it is a part of.
    pub(crate) fn node() -> Actor {
        Actor { name: "the node itself".into(), right: Right::Administer }
    }

    /// Refuses what needs another right.
    pub(crate) fn check(&self, needed: Right) -> Result<(), Refused> {
        if self.right < needed {
            return Err(Refused::NotAllowed(format!("{} has no right to this", self.name)));
        }
        Ok(())
    }

    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_bytes(self.name.as_bytes());
        bytes.put_u8(self.right as u8);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Actor, Malformed> {
        let (name, right) = (reader.text()?.to_owned(), reader.u8()?);
        let known = [Right::Look, Right::Operate, Right::Administer];
        let right = known.into_iter().find(|known| *known as u8 == right).ok_or(Malformed)?;
        Ok(Actor { name, right })
    }
}

/// A request to another node: an action and who asks for it.
pub(crate) fn read(bytes: &[u8]) -> Result<(Actor, Action), Malformed> {
    let mut reader = Reader::new(bytes);
    let asked = (Actor::decode(&mut reader)?, Action::decode(&mut reader)?);
    reader.finish()?;
    Ok(asked)
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
    /// Let the node at this address take a member's place.
    Replace {
        member: String,
        address: String,
    },
    /// Hand the group over, to this voter, or to the best one, of a zone or at all.
    Transfer {
        group: ShardId,
        to: Target,
        longest: Millis,
    },
    /// Give every group away, and neither ask for one nor keep one for this long.
    StepDown {
        hold: Millis,
    },
    /// Leave the groups where they are: an operator has just put one there.
    Settle,
    /// Take a step of a restore.
    Restore(RestoreStep),
    /// Not give up on a restore: somebody looks after it.
    StillRestoring(RestoreId),
    /// Make or revoke a join token.
    Token(TokenStep),
}

/// Whom a group is handed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The voter of this name or id; nothing: the one that lacks least.
    pub name: Option<String>,
    /// Only voters with this label of a data centre.
    pub zone: Option<String>,
}

impl Target {
    /// The voter of this name or id.
    pub fn named(name: &str) -> Target {
        Target { name: Some(name.into()), zone: None }
    }
}

impl Action {
    /// What whoever asks for it must be allowed.
    fn needs(&self) -> Right {
        match self {
            Action::Restore(_) | Action::StillRestoring(_) | Action::Token(_) => Right::Administer,
            Action::Remove { .. }
            | Action::Demote { .. }
            | Action::Promote { .. }
            | Action::Replace { .. }
            | Action::Transfer { .. }
            | Action::StepDown { .. }
            | Action::Settle => Right::Operate,
        }
    }

    /// Whose leader is asked.
    fn group(&self) -> ShardId {
        match self {
            Action::Transfer { group, .. } => *group,
            Action::Remove { .. }
            | Action::Demote { .. }
            | Action::Promote { .. }
            | Action::Replace { .. }
            | Action::StepDown { .. }
            | Action::Settle
            | Action::Restore(_)
            | Action::StillRestoring(_)
            | Action::Token(_) => RECORDS,
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
                for text in [&to.name, &to.zone] {
                    bytes.put_bytes(text.as_deref().unwrap_or_default().as_bytes());
                }
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
            Action::Replace { member, address } => {
                bytes.put_u8(6);
                bytes.put_bytes(member.as_bytes());
                bytes.put_bytes(address.as_bytes());
            }
            Action::Restore(step) => {
                bytes.put_u8(7);
                bytes.put_bytes(&step.entry());
            }
            Action::StillRestoring(id) => {
                bytes.put_u8(8);
                bytes.put_u64(id.begun.0);
                bytes.put_u64(id.incarnation.0);
            }
            Action::Token(step) => {
                bytes.put_u8(9);
                bytes.put_bytes(&step.entry());
            }
        }
        bytes
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Action, Malformed> {
        let maybe = |text: &str| Some(text).filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(match reader.u8()? {
            0 => Action::Remove { member: reader.text()?.into(), force: reader.u8()? != 0 },
            1 => Action::Transfer {
                group: ShardId(reader.u16()?),
                to: Target { name: maybe(reader.text()?), zone: maybe(reader.text()?) },
                longest: Millis(reader.varint()?),
            },
            2 => Action::StepDown { hold: Millis(reader.varint()?) },
            3 => Action::Settle,
            4 => Action::Demote { member: reader.text()?.into(), force: reader.u8()? != 0 },
            5 => Action::Promote { member: reader.text()?.into() },
            6 => Action::Replace { member: reader.text()?.into(), address: reader.text()?.into() },
            7 => Action::Restore(RestoreStep::decode(reader.bytes()?.get(1..).ok_or(Malformed)?)?),
            8 => Action::StillRestoring(RestoreId {
                begun: Index(reader.u64()?),
                incarnation: Incarnation(reader.u64()?),
            }),
            9 => Action::Token(TokenStep::decode(reader.bytes()?.get(1..).ok_or(Malformed)?)?),
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
    /// This member votes already, so that it takes nobody's place.
    VotesAlready(String),
    /// There is no join token of this id.
    UnknownToken(u64),
    /// There are so many join tokens already.
    TooManyTokens(usize),
    /// Whoever asks may not; what is needed.
    NotAllowed(String),
    /// Whether it was done is not known.
    Unknown,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::SingleMode => {
                f.write_str(
                    "this node has no peer address: start it with --raft-addr and --raft-advertise, and without --raft=false",
                )
            }
            Refused::NoLeader => f.write_str("no node leads just now"),
            Refused::Busy => f.write_str("other actions are under way; try again"),
            Refused::UnknownMember(text) => write!(f, "the cluster has no member {text}"),
            Refused::UnknownGroup(group) => write!(f, "there is no group {group}"),
            Refused::NotVoter(name) => write!(f, "{name} does not vote, so it cannot lead"),
            Refused::Guard(numbers) => write!(f, "refused: {numbers}"),
            Refused::TransferFailed(why) => write!(f, "not handed over: {why}"),
            Refused::NotAdmitted(why) => write!(f, "not added: {why}"),
            Refused::VotesAlready(name) => {
                write!(f, "{name} is there and votes already, so it cannot take another one's place")
            }
            Refused::UnknownToken(id) => write!(f, "there is no join token {id:016x}"),
            Refused::TooManyTokens(max) => write!(f, "there are {max} join tokens already: revoke some"),
            Refused::NotAllowed(why) => write!(f, "not allowed: {why}"),
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
        Err(Refused::NotAllowed(why)) => text(11, why),
        Err(Refused::VotesAlready(name)) => text(14, name),
        Err(Refused::UnknownToken(id)) => {
            text(12, "");
            bytes.put_u64(*id);
        }
        Err(Refused::TooManyTokens(max)) => {
            text(13, "");
            bytes.put_varint(*max as u64);
        }
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
        11 => Refused::NotAllowed(text),
        12 => Refused::UnknownToken(reader.u64()?),
        13 => Refused::TooManyTokens(reader.narrow()?),
        14 => Refused::VotesAlready(text),
        _ => return Err(Malformed),
    };
    reader.finish()?;
    Ok(Err(refused))
}

impl<S: StateMachine> Handle<S> {
    /// The same node, asked by somebody else: what is done through it is done in that name, and refused if that one may not.
    #[must_use]
    pub fn on_behalf_of(&self, actor: Actor) -> Handle<S> {
        let mut handle = self.clone();
        handle.actor = Arc::new(actor);
        handle
    }

    /// Takes a member, by its name or the 16 digits of its id, out of every group for good. What it leads is handed over first; it is told,
    /// and its [`Handle::retired`] says so. Without `force` nothing is done that would cost a group its majority; with it, it is done and
    /// logged as such. The last voter stays whatever is asked.
    ///
    /// # Errors
    /// It was not done.
    pub async fn remove(&self, member: &str, force: bool) -> Result<Done, Refused> {
        let is_me = member == self.identity().node || member == Incarnation(self.id()).to_string();
        match self.act(Action::Remove { member: member.into(), force }).await {
            // The connection ends with the membership, perhaps before the answer has come; then the news comes.
            Err(Refused::Unknown) if is_me => match timeout(NEWS_MAX, self.retired()).await {
                Ok(_) => Ok(Done { leader: self.name_of(self.leader(RECORDS)), ..Done::default() }),
                Err(_) => Err(Refused::Unknown),
            },
            outcome => outcome,
        }
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
        let outcome = self.remove(&Incarnation(self.id()).to_string(), force).await;
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

    /// Introduces the node at a peer address to this cluster, and waits until it is a member; it votes when it has caught up, or, as a
    /// replica, not before it is promoted. It must wait for a cluster, and be one that this cluster admits.
    ///
    /// # Errors
    /// It was not admitted.
    pub async fn add(&self, address: &str, replica: bool) -> Result<Member, Refused> {
        self.actor.check(Right::Operate)?;
        let peers = self.common.peers.get().ok_or(Refused::SingleMode)?;
        if self.leader(RECORDS) == 0 {
            return Err(Refused::NoLeader);
        }
        let member = admitted(peers, address).await?;
        if replica {
            self.demote(&Incarnation(member.id).to_string(), false).await?;
        }
        Ok(member)
    }

    /// Lets the node at a peer address take the place of a member, by its name or id. It must wait for a cluster, as for [`Handle::add`];
    /// it learns, and when it has caught up it takes the vote in the same change that removes the other one for good. Waits for that as
    /// long as for an admission; it happens later all the same.
    ///
    /// # Errors
    /// It was not done.
    pub async fn replace(&self, member: &str, address: &str) -> Result<Done, Refused> {
        self.act(Action::Replace { member: member.into(), address: address.into() }).await
    }

    /// Hands one group, or every group, to a voter; waits until that one has committed an entry, at most `longest` for each. What was asked
    /// for meanwhile is held, not refused.
    ///
    /// # Errors
    /// A group is led as before.
    pub async fn hand_over(&self, group: Option<ShardId>, to: &Target, longest: Millis) -> Result<Done, Refused> {
        let groups: Vec<ShardId> = match group {
            Some(group) if !self.common.inbox.has(group) => return Err(Refused::UnknownGroup(group.0)),
            Some(group) => vec![group],
            None => (0..self.identity().shards).map(ShardId).collect(),
        };
        let mut last = Done::default();
        for group in groups.into_iter().rev() {
            let done = self.act(Action::Transfer { group, to: to.clone(), longest }).await?;
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
    pub(crate) async fn act(&self, action: Action) -> Result<Done, Refused> {
        let peers = self.common.peers.get().ok_or(Refused::SingleMode)?;
        let mut patience = Patience::new(self);
        loop {
            let leader = self.leader(action.group());
            let outcome = match peers.links.get(leader) {
                _ if leader == self.id() => perform(peers, &self.actor, &action).await,
                Some(link) => link.act(&self.actor, &action).await,
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
pub(crate) async fn perform<S: StateMachine>(
    peers: &Arc<Shared<S>>,
    actor: &Actor,
    action: &Action,
) -> Result<Done, Refused> {
    actor.check(action.needs())?;
    let _place = peers.actions.try_acquire().map_err(|_| Refused::Busy)?;
    if *action == Action::Settle {
        peers.common.inbox.control(Control::Settle);
        return Ok(Done::default());
    }
    if peers.common.routes.leader(action.group()) != peers.common.me {
        return Err(Refused::NoLeader);
    }
    if let Action::StillRestoring(id) = action {
        peers.common.inbox.control(Control::StillRestoring(*id));
        return Ok(Done::default());
    }
    let begun = Instant::now();
    let outcome = match action {
        Action::Remove { member, force } => remove(peers, member, *force).await,
        Action::Demote { member, force } => demote(peers, member, *force).await,
        Action::Promote { member } => promote(peers, member).await,
        Action::Replace { member, address } => replace(peers, member, address).await,
        Action::Transfer { group, to, longest } => transfer(peers, *group, to, *longest).await,
        Action::StepDown { hold } => step_down(peers, *hold).await,
        Action::Restore(step) => {
            let position = restoring::propose(&peers.common, *step).await;
            position.map(|position| Done { position: Some(position), ..done(peers, RECORDS, String::new()) })
        }
        Action::Token(step) => tokens::perform(peers, step).await,
        Action::Settle | Action::StillRestoring(_) => Ok(Done::default()),
    };
    let result = match &outcome {
        // It is asked of the next leader.
        Err(Refused::NoLeader) => return outcome,
        Err(refused) => refused.to_string(),
        Ok(done) => done.note.clone(),
    };
    tracing::debug!(target: "raft", event = "admin.done", who = %actor.name, action = ?action, ok = outcome.is_ok(), "{result}");
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
        transfer(peers, RECORDS, &Target::default(), TRANSFER_MAX).await?;
        return Err(Refused::NoLeader);
    }
    for (group, _) in groups.iter().filter(|(group, _)| common.routes.leader(*group) == id) {
        if let Some(link) = peers.links.get(id) {
            // If it cannot, the others elect somebody.
            let _ = link
                .act(&Actor::node(), &Action::Transfer { group: *group, to: Target::default(), longest: TRANSFER_MAX })
                .await;
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
        let mut position = None;
        if !members.is_demoted(id) {
            position = Some(keep_from_voting(peers, member.clone()).await?);
        }
        return Ok(Done { position, ..done(peers, RECORDS, format!("{name} does not vote, until it is promoted")) });
    }
    let numbers = after(&voters(&peers.common.status.borrow()), Step::Unvote(id), |id| is_alive(peers, id));
    if numbers.voters == 0 || !(numbers.decides() || force) {
        return Err(Refused::Guard(numbers));
    }
    if id == peers.common.me {
        // The next leader does it.
        transfer(peers, RECORDS, &Target::default(), TRANSFER_MAX).await?;
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

/// The member at a peer address; if there is none yet, the node there is introduced, and admitted.
async fn admitted<S: StateMachine>(peers: &Arc<Shared<S>>, address: &str) -> Result<Member, Refused> {
    let known = |name: Option<&str>| {
        let members = peers.members();
        let found = members.iter().find(|member| member.peer == address || Some(member.name.as_str()) == name);
        found.cloned()
    };
    if let Some(member) = known(None) {
        return Ok(member);
    }
    let answer = peers.introduce(&[address.to_owned()]).await.into_iter().next();
    let name = answer
        .unwrap_or_else(|| Err("this node is starting".into()))
        .map_err(|why| Refused::NotAdmitted(format!("{address}: {why}")))?;
    let mut status = peers.common.status.subscribe();
    let admitted = async {
        loop {
            if let Some(member) = known(Some(&name)) {
                return member;
            }
            // The sender lives in `peers`.
            let _ = status.changed().await;
        }
    };
    let late = |_| Refused::NotAdmitted(format!("{name} has not asked to be admitted; its log may say why"));
    timeout(ADMISSION_MAX, admitted).await.map_err(late)
}

async fn replace<S: StateMachine>(peers: &Arc<Shared<S>>, text: &str, address: &str) -> Result<Done, Refused> {
    let members = peers.members();
    let votes = |member: &Member| members.configuration.voters.contains(&member.id);
    let Some(old) = find(&members, text) else {
        let already = members.iter().find(|member| member.peer == address && votes(member));
        let already = already.ok_or_else(|| Refused::UnknownMember(text.into()))?;
        return Ok(done(peers, RECORDS, format!("{} votes, and the cluster has no member {text}", already.name)));
    };
    // It gives a vote to the cluster already: with the old one gone there would be one fewer.
    if let Some(voter) = members.iter().find(|member| member.peer == address && member.id != old.id && votes(member)) {
        return Err(Refused::VotesAlready(voter.name.clone()));
    }
    if old.id == peers.common.me {
        // The next leader does it, from here on: whoever is admitted before might vote by then.
        transfer(peers, RECORDS, &Target::default(), TRANSFER_MAX).await?;
        return Err(Refused::NoLeader);
    }
    let newcomer = admitted(peers, address).await?;
    if newcomer.id == old.id {
        return Err(Refused::NotAdmitted(format!("{} itself is at {address}", old.name)));
    }
    let step = Step::Succeed { of: old.id, by: newcomer.id };
    let numbers = after(&voters(&peers.common.status.borrow()), step, |id| is_alive(peers, id));
    if !numbers.decides() {
        return Err(Refused::Guard(numbers));
    }
    if peers.members().configuration.voters.contains(&newcomer.id) {
        // It was admitted just now, and has caught up before it could be told whose vote it is to take.
        return remove(peers, text, false).await;
    }
    let position = change(peers, MemberChange::AddSuccessor { id: newcomer.id, of: old.id }).await?;
    let is_swapped = |status: &NodeStatus| {
        voters(status).iter().all(|(_, voters)| voters.contains(&newcomer.id) && !voters.contains(&old.id))
    };
    let swapped = wait_until(peers, ADMISSION_MAX, is_swapped).await;
    let how = if swapped { "has taken" } else { "will take, when it has caught up," };
    let note = format!("{} {how} the place of {}: {numbers}", newcomer.name, old.name);
    Ok(Done { position: Some(position), ..done(peers, RECORDS, note) })
}

/// Changes the members in group 0, whose leader this is; the others follow.
async fn change<S: StateMachine>(peers: &Arc<Shared<S>>, change: MemberChange) -> Result<Position, Refused> {
    until_done(peers, |client| Control::Change(RECORDS, vec![change], Vec::new(), client)).await
}

/// A learner of group 0, whose leader this is, does not become a voter by itself.
async fn keep_from_voting<S: StateMachine>(peers: &Arc<Shared<S>>, learner: Member) -> Result<Position, Refused> {
    let admission = Joining { token: None, at: peers.clock.now().wall, replica: true };
    until_done(peers, |client| Control::Admit(Vec::new(), learner.clone(), admission, client)).await
}

/// Asks the loop for a change of members, again while another one is under way.
async fn until_done<S: StateMachine>(
    peers: &Arc<Shared<S>>,
    ask: impl Fn(ReplyTo<S>) -> Control<S>,
) -> Result<Position, Refused> {
    let begun = Instant::now();
    loop {
        let (sender, reply) = oneshot::channel();
        peers.common.inbox.control(ask(ReplyTo::Local { sender, lane: None }));
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

pub(crate) fn done<S: StateMachine>(peers: &Shared<S>, group: ShardId, note: String) -> Done {
    let status = peers.common.status.borrow();
    let term = status.shards.iter().find(|shard| shard.shard == group).map_or(Term(0), |shard| shard.consensus.term);
    let leader = peers.common.routes.leader(group);
    let leader = peers.member(leader).map_or_else(|| Incarnation(leader).to_string(), |member| member.name);
    Done { term, leader, note, ..Done::default() }
}

async fn transfer<S: StateMachine>(
    peers: &Arc<Shared<S>>,
    group: ShardId,
    to: &Target,
    longest: Millis,
) -> Result<Done, Refused> {
    let common = &peers.common;
    let me = common.me;
    let term = {
        let status = common.status.borrow();
        let term = status.shards.iter().find(|shard| shard.shard == group).map(|shard| shard.consensus.term);
        term.unwrap_or_default()
    };
    let is_in = |id: u64, zone: &str| match id == me {
        true => peers.config.zone == zone,
        false => peers.reports().get(&id).is_some_and(|(_, report)| report.zone == zone),
    };
    // Raft knows of a member that has just gone for an election timeout; its connection is over at once.
    let reached = |zone: Option<&str>| -> Vec<Progress> {
        let progress = common.status.borrow().progress.get(&group).cloned().unwrap_or_default();
        let is_fit = |id: u64| id == me || (is_alive(peers, id) && zone.is_none_or(|zone| is_in(id, zone)));
        progress.into_iter().filter(|member| is_fit(member.id)).collect()
    };
    let choose = || match (&to.name, to.zone.as_deref()) {
        // Where the leader is in the zone itself there is nothing to hand over.
        (None, Some(zone)) if is_in(me, zone) => Ok(me),
        (None, zone) => successor(me, &reached(zone), u64::MAX).ok_or_else(|| {
            Refused::TransferFailed(match zone {
                None => "no other voter can be reached".into(),
                Some(zone) => format!("no voter in zone {zone} can be reached"),
            })
        }),
        (Some(text), _) => {
            let member = find(&peers.members(), text).ok_or_else(|| Refused::UnknownMember(text.into()))?;
            let groups = voters(&common.status.borrow());
            let votes = groups.iter().any(|(of, voters)| *of == group && voters.contains(&member.id));
            if !votes {
                return Err(Refused::NotVoter(member.name));
            }
            if !is_alive(peers, member.id) {
                return Err(Refused::TransferFailed(format!("{} cannot be reached", member.name)));
            }
            Ok(member.id)
        }
    };
    let mut target = choose()?;
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
        // It may have gone meanwhile; where there is nobody else, it is tried once more.
        target = choose().unwrap_or(target);
    }
    let leader = common.routes.leader(group);
    if let Some(link) = peers.links.get(leader) {
        // Otherwise it might soon be spread elsewhere; no more.
        let _ = link.act(&Actor::node(), &Action::Settle).await;
    }
    if leader != target && *to != Target::default() {
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
    async fn act(&self, actor: &Actor, action: &Action) -> Result<Done, Refused> {
        let mut body = Vec::new();
        actor.encode(&mut body);
        body.extend_from_slice(&action.encode());
        let answer = self.request(What::Act, body).ok_or(Refused::NoLeader)?;
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
            Action::Transfer { group: ShardId(3), to: Target::named("b"), longest: Millis(5) },
            Action::Transfer {
                group: ShardId(3),
                to: Target { name: None, zone: Some("dc2".into()) },
                longest: Millis(5),
            },
            Action::Replace { member: "a".into(), address: "b:7000".into() },
            Action::StepDown { hold: Millis(9) },
            Action::Settle,
            Action::Demote { member: "a".into(), force: true },
            Action::Promote { member: "a".into() },
            Action::Token(TokenStep::Revoke(7)),
        ];
        for action in actions {
            assert_eq!(Action::decode(&mut Reader::new(&action.encode())), Ok(action));
        }
        assert!(Action::decode(&mut Reader::new(&[10])).is_err());
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
            Err(Refused::NotAllowed("why".into())),
            Err(Refused::UnknownToken(7)),
            Err(Refused::TooManyTokens(8)),
        ];
        for outcome in outcomes {
            assert_eq!(decode_outcome(&encode_outcome(&outcome)), Ok(outcome));
        }
    }

    /// Goal: who asks travels with the action, and anything else is malformed.
    #[test]
    fn who_asks_travels_with_the_action() {
        for right in [Right::Look, Right::Operate, Right::Administer] {
            let actor = Actor { name: "ann".into(), right };
            let mut bytes = Vec::new();
            actor.encode(&mut bytes);
            bytes.extend_from_slice(&Action::Settle.encode());
            assert_eq!(read(&bytes), Ok((actor, Action::Settle)));
            bytes.push(0);
            assert!(read(&bytes).is_err());
        }
        assert!(read(&Action::Settle.encode()).is_err());
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
