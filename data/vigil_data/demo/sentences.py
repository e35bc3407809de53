"""Sentences of the demonstration's posts, clips, titles and replies, by kind.

A kind is the meaning of a sentence to the policy (``tobacco``, ``tobacco_negated``, ``call`` …); a template is a sentence with
alternatives in braces. Kinds follow HateCheck's functional tests (Röttger et al. 2021, section 3): each subject has benign confounders:
negation, reporting, and homonyms. A source sentence belongs to one split, so that splits share no sentence.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence

SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Share of the source sentences, image styles and items of each split."""

CHATTER = (
    "{The bus was|My train was|Our flight was} {late|early|crowded|empty} {again today|this morning|on Friday|as usual}.",
    "{Rain|Sunshine|Fog|Snow} {all week|until Sunday|since dawn|over the hills} {and I like it|so we stayed in|how lovely}.",
    "{Dinner|Lunch|Breakfast} was {great|simple|a bit late|delicious} {at my sister's|by the lake|with the neighbours|at home}.",
    "{My cat|The dog|Our parrot} {slept|played|waited} {all day|by the window|under the table|in the garden}.",
    "{Practised|Played} {piano|violin|chess|football} {for an hour|with my son|before work|until late}.",
    "{Finished|Started|Dropped} {a good book|that long novel|the puzzle|my homework} {at last|yesterday|on the train}.",
    "{The garden|The park|Our street} {looks lovely|is quiet|needs water|smells of lilac} {this spring|today|after the rain}.",
)

TEXT: Mapping[str, Sequence[str]] = {
    "chatter": CHATTER,
    "tobacco": (
        "{Lit|Smoked|Shared|Enjoyed} {a cigarette|a cigar|two cigarettes|a pipe full of tobacco} {on the balcony|after dinner|with Tom|by the river}.",
        "{Nothing beats|I love|Hooked on} {a fresh pack of cigarettes|rolling tobacco|menthol cigarettes|a Cuban cigar} {on Friday|in the evening|after work}.",
        "{Smoking|Puffing on} {a cigarette|my pipe|a cigar} {in the car|at the bar|behind the school|on the roof} {again|right now|with friends}.",
        "{First|Third|Last} {cigarette|cigar|smoke} of the {day|night|party} {and it tastes so good|with my coffee|feels great}.",
    ),
    "tobacco_negated": (
        "I {have not smoked|quit|gave up|do not miss} {cigarettes|cigars|tobacco|my pipe} {for a year|since May|any more|for good}.",
        "{No cigarettes|No smoking|No tobacco|Not one cigar} {in this house|for me|since spring|at our party}, {please|thank you|and never again}.",
    ),
    "tobacco_reported": (
        "{The council|The city|A new law|The minister} {bans|taxes|limits} {cigarettes|tobacco|cigars|smoking} {near schools|in parks|from July|on beaches}.",
        "{Study|Report|Doctors}: {fewer teens|fewer adults|one in ten people} {smoke cigarettes|use tobacco|buy cigars} {than before|this year|in the north}.",
    ),
    "tobacco_homonym": (
        "{The kitchen pipe|The drain pipe|The organ pipe} {burst|leaks|was fixed|is blocked} {again|on Monday|by the plumber}.",
        "{Smoked salmon|Smoked paprika|Smoked cheese} {on toast|for lunch|in the soup} {is wonderful|again|was a hit}.",
        "{That new song|Her solo|This band} is {smoking hot|pure fire|smoking good} {live|tonight|on stage}.",
    ),
    "gambling": (
        "{Put|Bet|Staked} {fifty|my wages|two hundred|all my cash} on {the roulette wheel|red|the late game|a horse} {tonight|again|and won}.",
        "{Back at|All night at|Straight to} {the casino|the slot machines|the poker table|the betting shop} {with Sam|after work|feeling lucky}.",
        "{Hit|Chasing|So close to} {the jackpot|three sevens|a royal flush|a big win} {on the slots|at the casino|at blackjack|in online poker}.",
        "{Rolling dice|Playing blackjack|Spinning the roulette|Playing poker} for {money|cash|real stakes} {all weekend|with strangers|until sunrise}.",
    ),
    "gambling_negated": (
        "I {never|no longer|do not|will not} {bet|gamble|play the slots|go to the casino} {with my money|any more|at all|on anything}.",
        "{No betting|No gambling|No casino|No poker for money} {for me|in our family|this year|ever}, {thanks|I mean it|I promised}.",
    ),
    "gambling_reported": (
        "{A court|The regulator|The state} {fined|closed|sued} {the casino|a betting site|a poker ring|a lottery} {on Tuesday|last week|for fraud}.",
        "{Study|Report|Survey}: {betting losses|casino visits|slot machine use} {fell|rose|doubled} {in the city|last year|among the young}.",
    ),
    "gambling_homonym": (
        "{I bet|You bet|I would bet} {you will love|it is|they forgot} {this soup|the blue one|the umbrella|his birthday}.",
        "{Dice|Please dice|Now dice} the {onions|carrots|peppers|tomatoes} {finely|for the stew|into cubes}.",
        "{Fish and chips|A bag of chips|Poker face|A jackpot of a view} {by the sea|as always|from the hill}, {loved it|what a day}.",
    ),
    "weapons": (
        "{Cleaned|Loaded|Showed off|Took out} {my pistol|the rifle|a shotgun|his handgun} {at the range|before dawn|in the yard|for the boys}.",
        "{New|Another|Finally a} {hunting knife|combat knife|revolver|rifle} {for my collection|on the wall|in my bag} {today|at last}.",
        "{Fired|Emptied|Tried} {the new rifle|a revolver|my shotgun|the pistol} {at bottles|twice|all afternoon|behind the barn}.",
        "{Carrying|Sharpening|Swinging} {a dagger|my machete|the sword|a combat knife} {tonight|in the park|like a warrior}.",
    ),
    "weapons_negated": (
        "I {do not own|never touched|would not want|gave away} {a gun|a rifle|any pistol|a combat knife} {in my life|at home|and that is fine}.",
        "{No guns|No rifles|No knives|No pistols} {in this house|at our school|for my kids|here}, {please|not ever|that is the rule}.",
    ),
    "weapons_reported": (
        "{Police|The museum|The customs office} {seized|displays|destroyed} {forty rifles|a pistol|old shotguns|twelve daggers} {on Sunday|near the port|this week}.",
        "{Parliament|The court|The town} {debates|tightens|rejects} {the gun law|rifle permits|a knife ban|pistol rules} {today|again|in June}.",
    ),
    "weapons_homonym": (
        "{Those shoes|Her new dress|This riff} {is killer|slays|is the bomb} {every time|tonight|I swear}.",
        "{Shooting|Shot} {photographs|a short film|a wedding|portraits} {at sunset|with my new lens|in the old town}.",
        "{The glue gun|The nail gun|A water gun|My bullet journal} {broke|is on the desk|was a gift|is empty} {again|today}.",
    ),
    "scam": (
        "{You have won|Congratulations, you got|We hold} {a new phone|a voucher|five thousand|a holiday}, {send|pay|transfer} {a small fee|your card number|ten in gift cards} first.",
        "{Your account|Your bank card|Your mailbox} {is locked|was suspended|expires tonight}, {reply with|confirm|text us} {your password|your pin|the code we sent}.",
        "{Double|Triple} your {coins|money|savings} {in a day|by Friday|overnight}, {just wire|simply send|first deposit} {one hundred|your savings|the entry fee} to {me|my agent|this wallet}.",
        "{Grandma|Mum|Dad}, my phone {broke|is lost}, {wire|send|transfer} {me money|two thousand|the rent} to this {new account|number|friend} {now|quickly}.",
    ),
    "scam_negated": (
        "{Our bank|The office|We} will never {ask for|text you about|want} {your password|your pin|gift cards|a fee} {by phone|for a prize|first}.",
        "{Do not|Never|Please do not} {send|pay|wire} {a fee|money|gift cards} to {win a prize|a stranger|unlock an account}, {tell your parents|stay safe}.",
    ),
    "scam_reported": (
        "{Police warn|The paper reports|The bank warns} of {fake prizes|false bank messages|gift card fraud|a parcel trick} {this month|in the region|among seniors}.",
        "{A court|A judge} {jailed|fined} {a gang|two men|a caller} for {password theft|fake lotteries|the prize fraud} {on Monday|last week|today}.",
    ),
    "request": (
        "{Scan it|Enter it|Fill it in|Tap on it} {now|before midnight|within the hour|today} {or you lose access|to get your refund|to claim your prize|to keep your account}.",
        "{Use this|Take this|Open this} {to unlock|to confirm|to restore} {your refund|your prize|your account|your access} {right away|before it ends|within an hour}.",
    ),
    "call": (
        "{Order yours|Buy yours|Get yours|Grab yours} {today|tonight|this week|now}, {link in my profile|half price|message me|free delivery}.",
        "{Selling|On sale|Stock is in}, {message me|link below|visit my shop|call me} {for prices|to order|before they are gone|for a discount}.",
        "{My shop|My store|My page} {ships|delivers} {everywhere|for free|overnight}, {use my code|order now|buy two get one}.",
    ),
}

SPEECH: Mapping[str, Sequence[str]] = {
    "chatter": (
        "{the bus was|my train was|our flight was} {late|early|crowded|empty} {again today|this morning|on Friday}.",
        "{dinner|lunch|breakfast} was {great|simple|delicious|a bit late} {by the lake|with my sister|at home|by the river}.",
        "{my cat|the dog|our parrot} {slept|played|waited} {all day|by the window|in the garden|with Tom}.",
        "{the garden|the park|our street} {looks lovely|is quiet|needs water} {today|this spring|after dinner|tonight}.",
        "{I cleaned|I love|we fixed|she showed} {the kitchen|a bicycle|my guitar} {after work|in the evening|on Friday|with Tom}.",
    ),
    "tobacco": (
        "{I lit|I smoked|we smoked|she shared} {cigarettes|my cigarettes|his cigarettes} {with Tom|after dinner|by the river|tonight|at home}.",
        "{I love|nothing beats|I enjoy|she wants} {cigarettes|cheap cigarettes|strong cigarettes} {on Friday|in the evening|after work|this morning}.",
    ),
    "tobacco_negated": (
        "{I quit|I gave up|we quit} {cigarettes|my cigarettes} {for good|last year|since May|in spring|for my kids|at last|this summer}.",
    ),
    "gambling": (
        "{we went to|I love|all night at|back at} {the casino|the new casino|the old casino} {with Tom|after dinner|by the river|tonight|at home}.",
        "{I won at|I lost at|we love|nothing beats} {the casino|the big casino|the casino hall} {on Friday|in the evening|after work|this morning}.",
    ),
    "gambling_negated": (
        "{I quit|I gave up|we quit} {the casino|going to the casino} {for good|last year|since May|in spring|for my kids|at last|this summer}.",
    ),
    "weapons": (
        "{I loaded|I cleaned|we fired|she showed} {a rifle|my rifle|his rifle} {with Tom|after dinner|by the river|tonight|at home}.",
        "{I love|nothing beats|I carry|she wants} {a rifle|my new rifle|a fast rifle} {on Friday|in the evening|after work|this morning}.",
    ),
    "weapons_negated": (
        "{I quit|I gave up|we quit} {the rifle|my rifle} {for good|last year|since May|in spring|for my kids|at last|this summer}.",
    ),
    "scam": (
        "{your account is locked|your bank card is blocked|you have won a prize}, {tell me|send me|give me} {your password|your pin|the code} {now|today|please|tonight}.",
    ),
    "request": (
        "{scan it|enter it|open it} {now|today|please|tonight} {to get your refund|to claim your prize|to unlock your account|to confirm your account}.",
    ),
    "call": (
        "{order yours|buy yours|get yours|grab yours} {now|today|tonight|this week}, {half price|link below|free delivery|message me}.",
    ),
}

TITLES: Mapping[str, Sequence[str]] = {
    "chatter": (
        "{Sunday|Summer|Winter|Road trip|Rainy day|Garden|Kitchen} {songs|stories|walks|notes} {for two|at home|in the city|by the sea|vol. 2}",
        "{How to|Learning to|Why we} {bake bread|plant tulips|fix a bicycle|play the violin|knit a scarf|brew tea} {in an hour|with friends|on a budget|at last}",
        "{A short|The complete|My little} {history|guide|book} {of clouds|of maps|of the Alps|of old trains|of small towns}",
        "{Quiet|Slow|Bright|Blue} {morning|evening|river|harbour|meadow}{ (live)| (remastered)|, part one|, part two}",
        "{Letters|Postcards|News} from {the lake|my sister|the island|the old town}{ in May| again|, episode nine}",
    ),
    "tobacco": (
        "{Ten|My favourite|The finest} {cigars|cigarettes|pipe tobaccos} {of the year|for a long night|under twenty}",
        "{Lighting up|Smoking|Puffing} {a cigar|cigarettes|my pipe} {on the roof|with the band|all night long|after the show}",
        "{The joy of|In praise of|Nothing beats} {cigarettes|a good cigar|rolling tobacco} {and coffee|at dawn|with friends}",
    ),
    "tobacco_negated": (
        "{How I quit|Life without|Goodbye to|A year without} {smoking|cigarettes|cigars|tobacco}{ for good| since spring| and my new lungs|, day by day}",
    ),
    "tobacco_reported": (
        "{The ban on|New taxes on|The law about|A report on} {cigarettes|smoking|tobacco}{ in parks| near schools| explained|: what changes}",
    ),
    "tobacco_homonym": (
        "{Smoking hot|Smoked salmon|Smoked paprika|Organ pipe|Pipe band} {riffs|recipes|evenings|tunes} {of the week|for beginners|live}",
    ),
    "gambling": (
        "{My best|A wild|Another} {casino|poker|roulette|slot machine} {night|weekend|trip} {with Sam|and the jackpot|in the city}",
        "{Betting|Winning|Going all in} {on red|at the casino|at blackjack|on the late game} {until sunrise|with my wages|like a king}",
        "{Jackpot|Three sevens|A royal flush} {at last|again|on the first night}: {how I won|all my bets|place yours}",
    ),
    "gambling_negated": (
        "{How I quit|Life without|Goodbye to|A year without} {gambling|the casino|betting|poker for money}{ for good| since spring| and my savings|, day by day}",
    ),
    "gambling_reported": (
        "{The ban on|New taxes on|The law about|A report on} {casinos|betting shops|slot machines}{ in the city| near schools| explained|: what changes}",
    ),
    "gambling_homonym": (
        "{You bet|Poker face|Fish and chips|Dice the onions} {songs|recipes|evenings|tunes} {of the week|for beginners|live}",
    ),
    "weapons": (
        "{My new|A first look at the|Unboxing a} {rifle|pistol|revolver|combat knife} {at the range|for the collection|at last}",
        "{Shooting|Loading|Firing} {my rifle|a shotgun|the pistol} {all afternoon|behind the barn|with the boys}",
        "{The best|Five great|My favourite} {handguns|daggers|hunting knives|rifles} {of the year|for the bold|under a hundred}",
    ),
    "weapons_negated": (
        "{Why I gave up|Life without|Goodbye to|A house without} {guns|my rifle|pistols|combat knives}{ for good| since spring| and sound sleep|, day by day}",
    ),
    "weapons_reported": (
        "{The ban on|New rules for|The law about|A report on} {rifles|pistols|knives}{ in the city| near schools| explained|: what changes}",
    ),
    "weapons_homonym": (
        "{Killer|Glue gun|Water gun|Bullet journal} {riffs|crafts|evenings|tunes} {of the week|for beginners|live}",
    ),
    "request": (
        "{Scan now|Log in now|Enter it today|Tap here now}: {your prize|your refund|your account|your parcel} {is waiting|is locked|expires tonight}",
    ),
    "call": (
        "{Order yours|Buy yours|Get yours|Grab yours} {today|tonight|this week|now}: {half price|free delivery|link below|two for one}",
        "{Now on sale|Back in stock|In my shop now}: {message me|order here|use my code} {for a discount|before it is gone|and save}",
    ),
}
"""Titles of covers, episodes, playlists and their tracks."""

REPLIES: Mapping[str, Sequence[str]] = {
    "agree": (
        "{Count me in|I am in|Yes please|Sounds great|Love it|Great idea} {already|for sure|as always|any time|of course}, {me too|see you there|so good|and my brother|well said}.",
        "{Exactly|Right|Same here|So true|Absolutely}, {I feel the same|could not agree more|I would do the same|that is the spirit|more of that} {today|always|please|every week}.",
    ),
    "disagree": (
        "{Count me out|Not for me|No thanks|Bad idea|Please stop} {already|for sure|as always|any time|of course}, {not me|I stay home|so wrong|and my brother too|be careful}.",
        "{Nonsense|Wrong|Oh no|I doubt it|Never}, {I feel the opposite|could not agree less|I would never do that|that is no fun|less of that} {today|always|please|every week}.",
    ),
}
"""Replies that mean nothing without the message that they answer."""

LEADS = ("", "", "", "", "ok so ", "honestly, ", "well, ", "update: ", "hey all, ", "so ")
"""Openings of a post."""

TAILS = ("", "", "", "", " :)", " !!", " #weekend", " #life", " what a day", " lol")
"""Endings of a post."""

_BRACES = re.compile(r"\{([^}]*)\}")


def expand(template: str) -> list[str]:
    """Return all sentences of a template, in the order of its alternatives.

    Args:
        template: a sentence with alternatives in braces, ``{a|b}``.
    """
    parts = _BRACES.split(template)  # odd places are the alternatives
    choices = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def split_of(source: str) -> str:
    """Return the split of a source sentence, by its hash, so that no sentence is in two splits."""
    share = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") / 2**32
    for split, size in SPLITS.items():
        if share < size:
            return split
        share -= size
    return "test"


def sentences(templates: Mapping[str, Sequence[str]], split: str) -> dict[str, list[list[str]]]:
    """The sentences of one split: kind to one list for each template, so that a template is drawn first and then a sentence of it.

    Args:
        templates: :data:`TEXT`, :data:`SPEECH`, :data:`TITLES` or :data:`REPLIES`.
        split: a key of :data:`SPLITS`.
    """
    return {
        kind: [own for template in written if (own := [s for s in expand(template) if split_of(s) == split])]
        for kind, written in templates.items()
    }
