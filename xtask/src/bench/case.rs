//! The figures of a report, and the measurements that they come from.

use clap::ValueEnum;

use super::load::client::Mode;

/// One figure per peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Case {
    #[value(name = "bulk_1")]
    Bulk1,
    #[value(name = "bulk_8")]
    Bulk8,
    PingpongIdleP50,
    PingpongIdleP99,
    PingpongLoadedP50,
    PingpongLoadedP99,
    Connections,
    CpuPerGb,
    MemoryIdle,
    TtfbP99,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

/// One load on one peer; it may give several figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measurement {
    Bulk1,
    Bulk8,
    PingpongIdle,
    PingpongLoaded,
    Connections,
    FirstByte,
}

impl Case {
    pub(super) const ALL: [Self; 10] = [
        Self::Bulk1,
        Self::Bulk8,
        Self::PingpongIdleP50,
        Self::PingpongIdleP99,
        Self::PingpongLoadedP50,
        Self::PingpongLoadedP99,
        Self::Connections,
        Self::CpuPerGb,
        Self::MemoryIdle,
        Self::TtfbP99,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bulk1 => "bulk_1",
            Self::Bulk8 => "bulk_8",
            Self::PingpongIdleP50 => "pingpong_idle_p50",
            Self::PingpongIdleP99 => "pingpong_idle_p99",
            Self::PingpongLoadedP50 => "pingpong_loaded_p50",
            Self::PingpongLoadedP99 => "pingpong_loaded_p99",
            Self::Connections => "connections",
            Self::CpuPerGb => "cpu_per_gb",
            Self::MemoryIdle => "memory_idle",
            Self::TtfbP99 => "ttfb_p99",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Bulk1 | Self::Bulk8 => "Gbit/s",
            Self::PingpongIdleP50
            | Self::PingpongIdleP99
            | Self::PingpongLoadedP50
            | Self::PingpongLoadedP99
            | Self::TtfbP99 => "us",
            Self::Connections => "1/s",
            Self::CpuPerGb => "CPU s/GB",
            Self::MemoryIdle => "B/connection",
        }
    }

    pub(super) fn better(self) -> Better {
        match self {
            Self::Bulk1 | Self::Bulk8 | Self::Connections => Better::Higher,
            Self::PingpongIdleP50
            | Self::PingpongIdleP99
            | Self::PingpongLoadedP50
            | Self::PingpongLoadedP99
            | Self::CpuPerGb
            | Self::MemoryIdle
            | Self::TtfbP99 => Better::Lower,
        }
    }
}

impl Better {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Higher => "higher",
            Self::Lower => "lower",
        }
    }

    /// How many times better `ours` is; `None` where that has no meaning.
    pub(super) fn ratio(self, ours: f64, peer: f64) -> Option<f64> {
        let ratio = match self {
            Self::Higher => ours / peer,
            Self::Lower => peer / ours,
        };
        ratio.is_finite().then_some(ratio)
    }
}

impl Measurement {
    pub(super) const ALL: [Self; 6] =
        [Self::Bulk1, Self::Bulk8, Self::PingpongIdle, Self::PingpongLoaded, Self::Connections, Self::FirstByte];

    /// What the client is told to do.
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Bulk1 | Self::Bulk8 => Mode::Bulk,
            Self::PingpongIdle | Self::PingpongLoaded => Mode::Ping,
            Self::Connections => Mode::Connections,
            Self::FirstByte => Mode::FirstByte,
        }
    }

    /// Bulk streams that run.
    pub(super) fn streams(self) -> usize {
        match self {
            Self::Bulk1 => 1,
            Self::Bulk8 => 8,
            Self::PingpongLoaded => 2,
            Self::PingpongIdle | Self::Connections | Self::FirstByte => 0,
        }
    }

    /// Whether client, proxy and backend share one CPU.
    ///
    /// With more, the scheduler's choice decides whether a hop wakes another CPU, which in a virtual machine takes tens
    /// of microseconds: the same peer would give 9 us in one round and 40 us in the next. On one CPU the path itself is
    /// measured, and no peer pays for waking.
    pub(super) fn on_one_cpu(self) -> bool {
        match self {
            Self::PingpongIdle => true,
            // Loads that need more than one CPU, and a tail that background work is part of.
            Self::Bulk1 | Self::Bulk8 | Self::PingpongLoaded | Self::Connections | Self::FirstByte => false,
        }
    }

    /// The figures that come out, in the units of their cases.
    pub(super) fn figures(self, measured: &super::load::client::Measured) -> Vec<(Case, f64)> {
        let gigabytes = measured.bytes as f64 / 1e9;
        let gigabits_per_second = gigabytes * 8.0 / measured.seconds;
        match self {
            Self::Bulk1 => {
                vec![(Case::Bulk1, gigabits_per_second), (Case::CpuPerGb, measured.cpu_seconds / gigabytes)]
            }
            Self::Bulk8 => vec![(Case::Bulk8, gigabits_per_second)],
            Self::PingpongIdle => {
                vec![(Case::PingpongIdleP50, measured.p50), (Case::PingpongIdleP99, measured.p99)]
            }
            Self::PingpongLoaded => {
                vec![(Case::PingpongLoadedP50, measured.p50), (Case::PingpongLoadedP99, measured.p99)]
            }
            Self::Connections => vec![(Case::Connections, measured.count as f64 / measured.seconds)],
            Self::FirstByte => vec![(Case::TtfbP99, measured.p99)],
        }
    }

    pub(super) fn gives(self, case: Case) -> bool {
        match case {
            Case::Bulk1 | Case::CpuPerGb => self == Self::Bulk1,
            Case::Bulk8 => self == Self::Bulk8,
            Case::PingpongIdleP50 | Case::PingpongIdleP99 => self == Self::PingpongIdle,
            Case::PingpongLoadedP50 | Case::PingpongLoadedP99 => self == Self::PingpongLoaded,
            Case::Connections => self == Self::Connections,
            Case::TtfbP99 => self == Self::FirstByte,
            // Measured in turns of its own.
            Case::MemoryIdle => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::client::Measured;

    #[test]
    fn a_ratio_above_one_means_that_ours_is_better_whichever_way_the_unit_points() {
        assert_eq!(Better::Higher.ratio(60.0, 20.0), Some(3.0));
        assert_eq!(Better::Lower.ratio(5.0, 10.0), Some(2.0));
        assert_eq!(Better::Lower.ratio(0.0, 10.0), None);
    }

    #[test]
    fn every_case_but_memory_comes_out_of_exactly_one_measurement() {
        let measured = Measured { seconds: 2.0, cpu_seconds: 1.0, bytes: 5_000_000_000, ..Measured::default() };
        for case in Case::ALL {
            let givers: Vec<_> = Measurement::ALL.into_iter().filter(|m| m.gives(case)).collect();
            let named: Vec<_> = Measurement::ALL
                .into_iter()
                .filter(|m| m.figures(&measured).iter().any(|(given, _)| *given == case))
                .collect();
            assert_eq!(givers, named, "{case:?}");
            assert_eq!(givers.len(), usize::from(case != Case::MemoryIdle), "{case:?}");
        }
        let figures = Measurement::Bulk1.figures(&measured);
        assert_eq!(figures, [(Case::Bulk1, 20.0), (Case::CpuPerGb, 0.2)]);
    }

    #[test]
    fn names_on_the_command_line_are_the_names_in_the_report() {
        for case in Case::ALL {
            let value = case.to_possible_value().expect("no case is hidden");
            assert_eq!(value.get_name(), case.name());
        }
    }
}
