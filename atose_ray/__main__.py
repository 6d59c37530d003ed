"""`python -m atose_ray` lists the commands."""

COMMANDS = {
    "prepare": "your audio and tags -> Parquet shards",
    "doctor": "examine a prepared data set: files, splits, tags; says whether training may start",
    "train": "one training of one configuration",
    "tune": "a hyper-parameter search, resumable, here or on a cluster",
    "status": "how far a search is: trials by state, the best, rate, forecast",
    "stop": "end a search after the running epochs; the same tune command goes on",
    "rerun": "train a trial again and compare it with its record, epoch by epoch",
    "promote": "the best trials again with other seeds: is the winner better, or was it lucky?",
    "crossvalidate": "a configuration on every fold of its data set: scores, mean and spread",
    "evaluate": "score a chosen model under a named protocol, beside published figures",
    "probe": "what a small classifier finds in a model's embeddings of other data, beside controls",
    "report": "write a study's report.html again",
    "tag": "tag audio files with a chosen model",
    "find": "sounds of a folder by words, or by another sound",
}


def main() -> None:
    """Print the commands and how to begin."""
    print("atose_ray: distributed hyper-parameter search for audio tagging\n")
    for command, summary in COMMANDS.items():
        print(f"  python -m atose_ray.{command:<13} {summary}")
    print("\nEach takes --help. To begin: python -m atose_ray.prepare demo && python -m atose_ray.tune demo")


if __name__ == "__main__":
    main()
