"""The commonest words of English and of other languages in the Latin script, and letters that English does not have.

Function words, and words that questions and requests begin with. What they are used for is in `router/language.py`.
"""


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ENGLISH = frozenset(
    _split(
        """
        the of and to in is it you that he was for on are with as his they be at one have this from or had by
        not word but what some we can out other were all there when up use your how said an each she which do
        their time if will way about many then them write would like so these her long make thing see him two
        has look more day could go come did my sound no most number who over know water than call first people
        may down side been now find any new work part take get place made live where after back little only
        round man year came show every good me give our under name very through just form much great think say
        help low line before turn cause same mean differ move right boy old too does tell sentence set three
        want air well also play small end put home read hand port large spell add even land here must big high
        such follow act why ask men change went light kind off need house picture try us again animal point
        mother world near build self earth father head stand own page should country found answer school grow
        study still learn plant cover food sun four thought let keep eye never last door between city tree cross
        since hard start might story saw far sea draw left late run while press close night real life few stop
        open seem together next white children begin got walk example ease paper often always music those both
        mark book letter until mile river car feet care second group carry took rain eat room friend began idea
        fish mountain north once base hear horse cut sure watch color face wood main enough plain girl usual
        young ready above ever red list though feel talk bird soon body dog family direct pose leave song
        measure state product black short class wind question happen complete ship area half rock order fire
        south problem piece told knew pass farm top whole king size heard best hour better true during hundred
        five remember step early hold west ground interest reach fast listen six table travel less morning ten
        simple several toward war lay against pattern slow center love person money serve appear road map
        science rule pull cold notice voice fall power town fine certain fly unit lead cry dark machine note
        wait plan figure star box noun field rest correct able pound done beauty drive stood contain front teach
        week final gave green oh quick develop sleep warm free minute strong special mind behind clear tail
        produce fact street inch lot nothing course stay wheel full force blue object decide surface deep moon
        island foot yet busy test record boat common gold possible plane age dry wonder laugh thousand ago ran
        check game shape yes hot miss brought heat snow bed bring sit perhaps fill east weight language among
        explain describe calculate compute evaluate solve prove simplify summarize summarise translate create
        generate compose imagine suppose please thanks thank hello hi hey okay ok its am because without around
        whose whom being having doing within per rewrite poem essay reset cancel bank card account define
        determine express legal law court contract using given following total cost percent average value values
        equal equals sum difference ratio times divided plus minus equation function probability integer
        integers positive least greatest son die cat sin anna ben met era leg dir dan sense via dont mia com pot
        ada min ed kim pre ali pro im comment till ella mine con pour hat dime jen dig mint hay han hans chi li
        ma bent mans bet ton yo mu mere prima fare meg bare cha sim non ai et notre dame yang bin ha ho par
        sister brother daughter
        """
    )
)
"""The commonest, those of questions and requests, and others, first names too, that other languages have as well."""

_OTHERS = {
    "de": """
        der die das und ist nicht ein eine einen einem einer eines mit auf für von zu zum zur den dem des im ich
        du er sie es wir ihr mich mir dich dir sich uns euch mein meine dein deine sein seine ihre unser kein
        keine was wer wie wo wann warum wieso welche welcher welches wieviel viel viele kann können darf dürfen
        muss müssen soll will wird werden wurde wurden war waren hat haben habe hatte sind bin bist auch noch
        nur schon sehr aber oder wenn dass weil als nach bei aus über unter vor durch gegen ohne um bis seit
        schreibe schreib erkläre nenne gib bitte danke ja nein hier dort dann heute man mehr diese dieser dieses
        jetzt beim vom ob etwas immer wieder lange
    """,
    "fr": """
        le la les un une des du de et est sont ne pas que qui quoi dont où quand comment pourquoi quel quelle
        quels quelles combien je tu il elle nous vous ils elles on me te se mon ma mes ton ta tes son sa ses
        notre votre leur ce cet cette ces dans sur sous avec sans pour par chez entre mais ou donc car si plus
        moins très bien aussi être avoir fait faire peut puis suis ai as avez ont était été écris écrivez
        explique donne moi au aux en l' d' j' c' n' s' m' t' qu' jusqu' lorsqu' bonjour merci oui non tout tous
        toute toutes comme alors même ici raconte
    """,
    "es": """
        el la los las un una unos unas de del que qué quién quien cuál cuando cuándo dónde donde cómo como por
        para con sin sobre entre hasta desde en al es son está están era fue ser estar hay no sí si se me te le
        lo les nos mi tu su sus mis tus este esta esto ese esa eso muy más menos pero porque también ya cuánto
        cuántos cuántas cuanto cuantos cuantas puedo puede pueden tiene tengo tienen hacer escribe escriba
        explica explícame dime dame hola gracias ayuda soy eres yo usted ustedes nosotros ellos ella todo todos
        cada algo nada después antes
    """,
    "it": """
        il lo la gli le un uno una di del dello della dei degli delle al allo alla ai agli alle da dal dalla in
        nel nella nei nelle con su sul sulla per tra fra ed ma se che chi cosa come dove quando perché quale
        quali quanto quanti quanta quante sono era erano essere ho hai ha abbiamo avete hanno non più meno molto
        anche io tu lui lei noi voi loro mi ti si ci vi mio mia tuo tua suo sua questo questa quello quella
        posso può fare scrivi spiega spiegami dimmi dammi ciao grazie sì l' d' dell' all' nell' un' c' qual sia
        prima dopo poi ancora
    """,
    "pt": """
        os as um uma uns umas de do da dos das ou que quem qual quais quando onde como por para pelo pela com
        sem sobre entre até desde em no na nos nas ao aos às são está estão era foi ser estar há não sim se me
        te lhe meu minha seu sua teu tua este esta isto esse essa isso muito mais menos mas porque também já
        quanto quantos quantas posso pode podem tem tenho têm fazer escreva escreve explique diga obrigado
        obrigada olá eu você ele ela nós eles elas tudo todos cada algo nada depois antes ajuda ajude vou meus
        num numa
    """,
    "ca": """
        el la els les un una uns unes de del dels que què qui quin quina quins quan on com per amb sense sobre
        entre fins des en al als és són està era ser hi ha no sí si se em et li ho ens meu meva seu seva aquest
        aquesta molt més menys però perquè també ja quant quants puc pot poden té tinc fer escriu explica digues
        gràcies hola jo tu ell ella nosaltres tot cada res després abans l' d' n' s' m'
    """,
    "ro": """
        și si în in de la cu pe din un una unui unei al ai ale este sunt era fost nu ce cine care când unde cum
        cât câți câte cat pentru prin despre după înainte mai mult foarte dar sau dacă ca că să se îmi mi ți îți
        lui ei noi voi eu tu el ea acest această aceasta pot poate am are avem scrie explică spune dă te rog
        mulțumesc bună
    """,
    "nl": """
        de het een en van in is dat die op te zijn met voor niet aan er om ook als maar bij of door over naar
        uit dan nog wel ik jij je hij zij ze wij we jullie mij mijn jouw uw hun ons onze wat wie waar wanneer
        waarom hoe hoeveel welke welk kan kunnen mag mogen moet moeten wil willen zal zou wordt worden werd
        heeft hebben heb had was waren ben bent geen deze dit daar hier nu meer veel zeer schrijf leg geef
        vertel alsjeblieft bedankt ja nee al tot zonder tussen tegen na
    """,
    "sv": """
        och att det som en ett på är av för med den till inte har de om jag du han hon vi ni var vad vem när
        varför hur vilken vilket vilka många mycket kan får ska skall vill måste från men eller så ut in vid
        efter under över mellan utan min mitt mina din ditt sin sitt hans hennes vår deras denna detta dessa där
        här nu bara också mer skriv förklara ge berätta tack hej ja nej blir blev hade skulle kunde man mig dig
        sig oss
    """,
    "da": """
        og at det som en et på er af for med den til ikke har de om jeg du han hun vi hvad hvem hvor hvornår
        hvorfor hvordan hvilken hvilket hvilke mange meget kan får skal vil må fra men eller så ud ved efter
        under over mellem uden min mit mine din dit sin sit hans hendes vores deres denne dette disse der her nu
        kun også mere skriv forklar giv fortæl tak hej ja nej bliver blev havde skulle kunne mig dig sig os år
    """,
    "no": """
        og at det som en et på er av for med den til ikke har de om jeg du han hun vi hva hvem hvor når hvorfor
        hvordan hvilken hvilket hvilke mange mye kan får skal vil må fra men eller så ut ved etter under over
        mellom uten min mitt mine din ditt sin sitt hans hennes vår deres denne dette disse der her nå bare også
        mer skriv forklar gi fortell takk hei ja nei blir ble hadde skulle kunne meg deg seg oss
    """,
    "fi": """
        ja on ei se että en ole oli olen ovat mutta tai kun jos niin kuin myös vain jo vielä mikä mitä kuka
        kenen missä milloin miksi miten kuinka mihin mistä paljon monta minä sinä hän me te he minun sinun hänen
        tämä tuo nämä voi voin voiko saa saako pitää täytyy kirjoita selitä kerro anna kiitos hei kyllä joka
        jotka sen siitä tätä ennen jälkeen kanssa ilman
    """,
    "hu": """
        az és egy nem hogy is van volt ez azt meg csak de ha mert vagy mint már még mi ki hol mikor miért hogyan
        hány mennyi melyik én te ti ők engem nekem neked kell lehet tud tudok szeretnék írj írjon magyarázd
        mondd kérlek köszönöm igen nagyon több minden után előtt alatt között nélkül
    """,
    "pl": """
        na do nie to się że jest są był była było co kto gdzie kiedy dlaczego jak jaki jaka jakie który która
        które ile czy ja ty on ona my wy oni mnie mi ci mój moja twój jego jej ich ten ta te tego tej po od za
        przez przed między bez dla przy ale lub albo więc bardzo tylko też już jeszcze może mogę można trzeba
        napisz wyjaśnij podaj powiedz proszę dziękuję cześć tak razy
    """,
    "cs": """
        na do ne to se že je jsou byl byla bylo co kdo kde kdy proč jak jaký jaká jaké který která které kolik
        zda já ty on ona my vy oni mě mi můj moje tvůj jeho její jejich ten ta toho po od za přes před mezi bez
        pro při ale nebo tedy velmi jen také už ještě může mohu musím napiš vysvětli řekni prosím děkuji ahoj
        ano krát
    """,
    "sk": """
        na do nie to sa že je sú bol bola bolo čo kto kde kedy prečo ako aký aká aké ktorý ktorá ktoré koľko či
        ja ty on ona my vy oni mi môj moja jeho jej ich ten tá po od za cez pred medzi bez pre pri ale alebo
        veľmi len aj už ešte môže môžem musím napíš vysvetli povedz prosím ďakujem ahoj áno
    """,
    "hr": """
        na do ne to se da je su bio bila bilo što šta tko ko gdje kada zašto kako koji koja koje koliko li ja ti
        on ona mi vi oni me moj moja njegov njezin ovaj ova taj ta po od za preko prije između bez pri ali ili
        vrlo samo također već još može mogu moram napiši objasni reci molim hvala bok
    """,
    "tr": """
        bir ve bu ne için ile de da mi mı mu mü çok daha en gibi kadar ama veya ya ki değil var yok olan olarak
        ben sen biz siz onlar benim senin bana sana onun bize nasıl neden niçin nerede nereye kim kaç hangi
        hangisi hangisidir nedir kimdir zaman her şey sonra önce yaz açıkla söyle anlat lütfen teşekkürler evet
        hayır merhaba hakkında eder olur mıdır midir
    """,
    "vi": """
        là và của có không một các những cho với được trong này đó để thì mà người từ đến khi như nào gì ai đâu
        sao bao nhiêu tại vì hãy viết giải thích tôi bạn anh chị em nó chúng ta về ra vào rất nhiều hơn cũng đã
        đang sẽ bài giúp cảm ơn xin chào bằng
    """,
    "id": """
        yang dan di ke dari ini itu untuk dengan pada adalah tidak ada apa siapa mana kapan mengapa kenapa
        bagaimana berapa saya aku kamu anda dia kami kita mereka akan bisa dapat harus sudah belum telah juga
        atau tapi tetapi karena jika kalau sangat lebih tentang seorang seekor sebuah oleh sebagai dalam tulis
        tuliskan buat buatkan jelaskan sebutkan tolong terima kasih halo ya apakah bukan boleh
    """,
    "tl": """
        ang ng sa na mga ay at ni si kay para ito iyan iyon ako ikaw siya kami tayo kayo sila ko mo niya namin
        natin nila ano sino saan kailan bakit paano ilan alin hindi may wala mayroon po opo oo kung dahil pero
        lang din rin pa ba isang sumulat ipaliwanag salamat
    """,
    "sw": """
        na ya wa kwa ni katika la za cha vya si hii hiyo huyu yule nini nani wapi lini vipi gani ngapi mimi wewe
        yeye sisi ninyi wao yangu yako yake yetu lakini au kama sana pia tu andika eleza tafadhali asante habari
        kuhusu upi ipi ambao ambayo kuwa ili
    """,
    "eo": """
        la kaj de en estas ne al kiu kio kie kiam kial kiel kiom mi vi li ŝi ni ili mia via pri por kun sen sed
        aŭ ĉu jes skribu klarigu dankon esti povas
    """,
    "lv": """
        un ir ne no ar par uz kā kas kur kad kāpēc cik kurš kura vai es tu viņš viņa mēs jūs viņi man tev mans
        tavs šis šī tas tā pēc pirms bez bet ja ļoti tikai arī jau vēl var varu uzraksti paskaidro pastāsti
        lūdzu paldies
    """,
    "lt": """
        ir yra ne iš su apie kaip kas kur kada kodėl kiek kuris kuri ar aš tu jis ji mes jūs jie man tau mano
        tavo šis ši tas ta po prieš be bet jei labai tik taip jau dar gali galiu parašyk paaiškink papasakok
        prašau ačiū
    """,
    "et": """
        ja on ei see et ole oli olen aga või kui nii ka ainult juba veel mis mida kes kus millal miks kuidas
        palju mitu mina sina tema meie teie nemad minu sinu selle seda saab võib peab kirjuta selgita räägi
        palun aitäh tere jah enne pärast ilma
    """,
}


def _by_word() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for language, text in _OTHERS.items():
        for word in _split(text):
            found[word] = (*found.get(word, ()), language)
    return found


WORDS = _by_word()
"""By word, the languages other than English that have it."""

PARTICLES = frozenset(
    _split("de la le les el los las du des del der den di da dos van von do san al un una en l' d' o' si mi co")
)
"""Words of other languages that stand in names in English text too."""

_LETTERS = """
    ß de
    ä de fi sv et
    ö de fi sv hu tr et
    ü de hu tr et
    à fr it pt ca
    ù fr it
    œ fr
    ã pt vi
    õ pt et
    ì it
    ò it ca
    å sv da no
    øæ da no
    łśżźń pl
    ąę pl lt
    ć pl hr
    řěů cs
    čšž cs hr
    đ vi hr
    ľ sk
    ďťý cs sk
    őű hu
    ğşı tr
    ă ro vi
    țș ro
    ơư vi
    āēīģķļņ lv
    ū lv lt
    ė lt
    ŝĉŭ eo
    íáú es pt hu cs
    ó es pt hu pl
"""
LETTERS = {
    letter: tuple(languages) for letters, *languages in map(str.split, _LETTERS.split("\n")[1:-1]) for letter in letters
}
"""By letter that English has not even in words it borrowed, such as café, the languages that have it."""
