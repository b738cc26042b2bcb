//! What a change of the members was, in words.

use replica::{Member, Members};

use crate::events::{Draft, Level};

/// What has become of the members between two moments. `by`: who has changed them, the leader.
pub(crate) fn changes(before: &Members, after: &Members, by: &str) -> Vec<Draft> {
    let told = |name: &'static str, member: &Member, text: String| {
        Draft::new(Level::Info, name, text).with("member", &*member.name).with("by", by)
    };
    let votes = |members: &Members, id: u64| members.configuration.voters.contains(&id);
    let mut drafts = Vec::new();
    let heir = |gone: &Member| {
        let other = |member: &&Member| member.id != gone.id && member.name == gone.name && votes(after, member.id);
        after.iter().find(other)
    };
    for member in after.iter() {
        let name = &member.name;
        match before.get(member.id) {
            None => drafts.push(told("raft.member.added", member, format!("{name} is a member"))),
            Some(known) if known.peer != member.peer => {
                let text = format!("{name} is reached at {} now, no more at {}", member.peer, known.peer);
                let moved = told("raft.member.address", member, text);
                drafts.push(moved.with("oldAddr", &*known.peer).with("newAddr", &*member.peer));
            }
            Some(_) => {}
        }
        if votes(after, member.id) && !votes(before, member.id) && before.get(member.id).is_some() {
            drafts.push(told("raft.member.promoted", member, format!("{name} votes")));
        }
    }
    for gone in before.iter().filter(|member| after.get(member.id).is_none()) {
        let name = &gone.name;
        drafts.push(match heir(gone) {
            Some(_) => told("raft.member.replaced", gone, format!("{name} has a new data directory, which votes")),
            None => told("raft.member.removed", gone, format!("{name} is no member any more")),
        });
    }
    drafts
}

#[cfg(test)]
mod tests {
    use super::*;
    use replica::Configuration;

    fn members(all: &[(u64, &str, &str)], voters: &[u64]) -> Members {
        let member = |(id, name, peer): &(u64, &str, &str)| Member {
            id: *id,
            name: (*name).into(),
            peer: (*peer).into(),
            url: String::new(),
        };
        let mut members = Members::of_voters(all.iter().map(member));
        let learners = all.iter().map(|(id, ..)| *id).filter(|id| !voters.contains(id)).collect();
        members.configuration = Configuration { voters: voters.to_vec(), learners, ..Configuration::default() };
        members
    }

    /// Goal: each step in the life of a member has its name, and what has not changed is not told.
    #[test]
    fn each_change_has_its_name() {
        let names = |before: &Members, after: &Members| -> Vec<String> {
            let told = changes(before, after, "a");
            told.iter().map(|draft| format!("{}: {}", draft.name, draft.text)).collect()
        };
        let two = members(&[(1, "a", "x"), (2, "b", "x")], &[1, 2]);
        let joining = members(&[(1, "a", "x"), (2, "b", "x"), (3, "c", "x")], &[1, 2]);
        let three = members(&[(1, "a", "x"), (2, "b", "x"), (3, "c", "x")], &[1, 2, 3]);
        assert_eq!(names(&two, &joining), ["raft.member.added: c is a member"]);
        assert_eq!(names(&joining, &three), ["raft.member.promoted: c votes"]);
        assert_eq!(names(&three, &two), ["raft.member.removed: c is no member any more"]);
        assert!(names(&three, &three).is_empty());
        let moved = members(&[(1, "a", "x"), (2, "b", "y")], &[1, 2]);
        assert_eq!(names(&two, &moved), ["raft.member.address: b is reached at y now, no more at x"]);
        let wiped = members(&[(1, "a", "x"), (2, "b", "x"), (4, "b", "x")], &[1, 2]);
        let swapped = members(&[(1, "a", "x"), (4, "b", "x")], &[1, 4]);
        let replaced = "raft.member.replaced: b has a new data directory, which votes";
        assert_eq!(names(&wiped, &swapped), ["raft.member.promoted: b votes", replaced]);
    }
}
