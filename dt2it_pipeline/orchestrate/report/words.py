"""What the recipe's choices and the stages mean, in the words that the report prints."""

from dt2it_pipeline.orchestrate.arms import CEILING, CONTROL

STAGE_WORDS = {
    "raw_preferences": "the noisy pool, as published",
    "debiased_pairs": "answers sampled and judged, paired within one style; rows in are candidate pairs",
    "t2i_pairs": "human preferences between two images, as questions",
    "training_pairs": "what the round's reward model learns from",
    "voted_pairs": "reward models vote; labels that look wrong are flipped",
    "verified_pairs": "kept as they are, or contested",
    "annotated_pairs": "contested pairs, and verified ones that people or judges voted on or verdicts turned",
}
ARM_NOTES = {
    CONTROL: "D0 and the noisy preferences as they are, uncurated",
    CEILING: "D0 and the same preferences with their true labels",
}
POLICY_NOTES = {
    "paper": "Policy “paper”, the published one: the reward models of all rounds vote, the most negative part of the "
    "pairs that they vote against is flipped, a verifier trained on the result confirms a pair or contests it, and two "
    "judges decide the contested ones.",
    "joint": "Policy “joint”: one model of labels, voters and judges says how probable it is that each label is right. "
    "Voters are reward models that were not trained on the pair. Pairs that are not sure enough by the vote are "
    "contested; judges are asked where a verdict is worth its price, and about some sure pairs drawn at random. The "
    "model is then fitted again with all verdicts, and every label is kept, flipped or dropped by what it says. "
    "Without pairs of known truth no label is flipped.",
}
STRENGTH_NOTES = {
    "paper": "Strength is the score of the chosen answer minus that of the rejected one, averaged over the voters. "
    "Left of zero the voters disagree with the label; the most negative of these (half of them in the published "
    "method) are flipped and then count as positive.",
    "joint": "Strength says how probable it is that the label, as it now stands, is right, as log-odds: 0 is 50%, "
    "2.2 is 90%, 4.6 is 99%. A pair below the bound that the recipe sets is contested.",
}
GROUP_NOTES = {
    "style-random": "which side is verbose is random",
    "style-congruent": "the better answer is the verbose one, as the noisy preferences would have it; "
    "a model that follows style alone gets 100",
    "style-incongruent": "the better answer is the plain one, against the bias of the noisy preferences; "
    "a model that follows style alone gets 0",
    "t2i": "two images and a caption: which image fits better",
}
