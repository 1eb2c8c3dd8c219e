from d3d.train.run import main

main()
