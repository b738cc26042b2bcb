//! Seeds that once found something, with what they found. A seed's meaning drifts with the code: what matters for long is a script or a test
//! beside the code as well.

use crate::options::Options;

/// Name and text of each. A text has lines `seed=…`, `option=…`, and comments.
pub const ALL: &[(&str, &str)] = &[
    ("order-of-members", include_str!("../regressions/order-of-members.txt")),
    ("empty-claim-too-late", include_str!("../regressions/empty-claim-too-late.txt")),
    ("last-but-one-leaves", include_str!("../regressions/last-but-one-leaves.txt")),
    ("read-before-replay", include_str!("../regressions/read-before-replay.txt")),
    ("sole-voter-speaks-too-soon", include_str!("../regressions/sole-voter-speaks-too-soon.txt")),
    ("commit-before-its-entries", include_str!("../regressions/commit-before-its-entries.txt")),
    ("leader-unknown", include_str!("../regressions/leader-unknown.txt")),
    ("wiped-out-of-groups", include_str!("../regressions/wiped-out-of-groups.txt")),
    ("restart-unsaid", include_str!("../regressions/restart-unsaid.txt")),
    ("leader-without-itself", include_str!("../regressions/leader-without-itself.txt")),
    ("claim-before-it-began", include_str!("../regressions/claim-before-it-began.txt")),
    ("leader-that-left-one-voter", include_str!("../regressions/leader-that-left-one-voter.txt")),
    ("two-snapshots-at-a-time", include_str!("../regressions/two-snapshots-at-a-time.txt")),
    ("steps-behind-a-look", include_str!("../regressions/steps-behind-a-look.txt")),
    ("voters-of-long-ago", include_str!("../regressions/voters-of-long-ago.txt")),
    ("shown-too-soon", include_str!("../regressions/shown-too-soon.txt")),
];

/// The seed and its options.
pub fn read(text: &str) -> Option<(u64, Options)> {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let seed = lines().find_map(|line| line.strip_prefix("seed="))?.parse().ok()?;
    let mut options = Options::draw(seed);
    for line in lines().filter(|line| !line.starts_with("seed=")) {
        options.set(line).ok()?;
    }
    Some((seed, options))
}
