//! Each scenario of `crates/sim/scenarios/` in a cluster of its own; what its lines mean: `sim::script`.

macro_rules! scenarios {
    ($($test:ident $file:literal)*) => {
        $(
            #[test]
            fn $test() {
                if let Err(why) = sim::script::play(include_str!(concat!("../scenarios/", $file, ".txt"))) {
                    panic!("{}: {why}", $file);
                }
            }
        )*

        /// Goal: no scenario is forgotten.
        #[test]
        fn every_file_is_played() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
            let mut files: Vec<String> = std::fs::read_dir(folder)
                .expect("the folder is there")
                .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
                .collect();
            files.sort();
            assert_eq!(files, [$(concat!($file, ".txt")),*]);
        }
    };
}

scenarios! {
    backlog_on_new_leader "backlog-on-new-leader"
    config_in_snapshot "config-in-snapshot"
    delay_beyond_retention "delay-beyond-retention"
    dying_worker "dying-worker"
    extend_vs_expire "extend-vs-expire"
    failover_every_third_of_a_lease "failover-every-third-of-a-lease"
    figure_eight "figure-eight"
    flap "flap"
    idle_pollers "idle-pollers"
    install_vs_apply "install-vs-apply"
    join_under_netsplit "join-under-netsplit"
    key_matrix "key-matrix"
    lost_tail_stop "lost-tail-stop"
    many_long_one_short "many-long-one-short"
    outage_of_an_hour "outage-of-an-hour"
    paused_leader_leases "paused-leader-leases"
    paused_leader_reads "paused-leader-reads"
    recycled_tail "recycled-tail"
    remove_then_return "remove-then-return"
    restart_all_anywhere "restart-all-anywhere"
    transfer_reads "transfer-reads"
    vote_then_crash "vote-then-crash"
    week_old_task "week-old-task"
}
